"""Prepare a corpus from texts: `python -m mlm_dist.prepare PATH... --gutenberg N... --out DIR`."""

import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter

from mlm_dist import api
from mlm_dist.arguments import OneLineParser, book_number, mirror, named_path
from mlm_dist.callable_module import make_callable
from mlm_dist.data.documents import DocumentIndex
from mlm_dist.data.splitting import describe_validation, plural
from mlm_dist.data.text_report import TextReport
from mlm_dist.errors import UserError
from mlm_dist.exit_codes import command_of, run_verb
from mlm_dist.output import print_result


def build_parser() -> ArgumentParser:
    """Build the command-line parser."""
    parser = OneLineParser(
        prog=command_of("prepare"),
        description="Encode texts and books of Project Gutenberg into a corpus to train on.",
        epilog="examples:\n"
        f"  {command_of('prepare')} my_novels/ --out corpora/novels\n"
        f"  {command_of('prepare')} 'articles/*.jsonl.gz' --text_key body --out corpora/articles\n"
        f"  {command_of('prepare')} letters/ --extend corpora/novels --add_tokens 1000 --out corpora/letters\n"
        f"  {command_of('prepare')} --gutenberg 1342 2701 --out corpora/two",
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "paths",
        nargs="*",
        type=named_path,
        metavar="PATH",
        help="files (.txt, .md, .jsonl, .ndjson, .csv, .tsv, .parquet, .arrow, each also with .gz or .zst after it), "
        "folders with such files, also those that `save_to_disk` of `datasets` wrote, patterns such as 'data/*.jsonl', "
        "and - for standard input",
    )
    parser.add_argument(
        "--gutenberg",
        nargs="+",
        action="extend",
        type=book_number,
        default=[],
        metavar="N",
        help="numbers of books of Project Gutenberg, which are downloaded once and cached",
    )
    parser.add_argument(
        "--mirror",
        type=mirror,
        default="https://www.gutenberg.org",
        metavar="URL",
        help="base URL of Project Gutenberg or of a mirror with cache/epub/N/pgN.txt; use a mirror to download many "
        "books (default: %(default)s)",
    )
    parser.add_argument("--out", type=named_path, required=True, metavar="DIR", help="folder to write the corpus into")
    parser.add_argument(
        "--val",
        nargs="+",
        action="extend",
        type=named_path,
        default=[],
        metavar="PATH",
        help="documents of the validation split",
    )
    parser.add_argument(
        "--val_fraction",
        type=float,
        default=0.05,
        metavar="F",
        help="without --val: fraction of the text in the validation split: the ends of long documents, and whole short "
        "documents (default: %(default)s)",
    )
    add_vocabulary(parser)
    add_reading(parser)
    parser.add_argument(
        "--drop_duplicates", action="store_true", help="leave out documents with the text of an earlier one"
    )
    parser.add_argument(
        "--near_duplicates",
        action="store_true",
        help="look for documents that are nearly the same, too: count them, or leave them out with --drop_duplicates",
    )
    return parser


def add_vocabulary(parser: ArgumentParser) -> None:
    """Add the flags about the tokenizer."""
    parser.add_argument(
        "--tokenizer",
        metavar="NAME",
        help="a tiktoken encoding, the folder of a corpus or run whose tokenizer is used, or `bpe` to train a "
        f"byte-level BPE on the texts (default: {api.DEFAULT_TOKENIZER})",
    )
    parser.add_argument("--vocab_size", type=int, metavar="N", help="for bpe: vocabulary size, with special tokens")
    parser.add_argument(
        "--extend",
        type=named_path,
        metavar="RUN",
        help="instead of --tokenizer: the folder of a corpus or run whose tokenizer is extended by tokens that are "
        "learned on the texts; its own tokens keep their ids",
    )
    parser.add_argument("--add_tokens", type=int, metavar="N", help="for --extend: the number of new tokens")


def add_reading(parser: ArgumentParser) -> None:
    """Add the flags about how texts are read."""
    parser.add_argument("--encoding", default="utf-8", help="character encoding of the files (default: %(default)s)")
    parser.add_argument(
        "--text_key", default="text", metavar="FIELD", help="the field of a record that is its text (default: text)"
    )
    parser.add_argument(
        "--split",
        choices=["document", "line"],
        default="document",
        help="of plain text: the whole file is a document, or each of its lines that is not blank (default: document)",
    )
    parser.add_argument(
        "--skip_broken", action="store_true", help="leave out broken records and count them, instead of refusing them"
    )


def main(arguments: list[str]) -> None:
    """Prepare a corpus and print a summary."""
    given = build_parser().parse_args(arguments)
    if given.gutenberg and given.encoding != "utf-8":
        raise UserError(f"--encoding {given.encoding} cannot be combined with --gutenberg, which is utf-8: remove one")
    start = time.perf_counter()
    corpus = api.prepare(**vars(given))
    seconds, manifest = time.perf_counter() - start, corpus.manifest
    why_smaller = (
        f" instead of {given.vocab_size}, because every word of the texts is already a token"
        if given.vocab_size is not None and manifest.vocab_size < given.vocab_size
        else ""
    )
    validation = describe_validation(DocumentIndex.open(corpus.path, manifest.documents, manifest.tokens))
    print_result(
        f"{given.out}: {plural(corpus.documents)}, {manifest.tokens['train']:,} training tokens, "
        f"{manifest.tokens['val']:,} validation tokens{validation and f' ({validation})'}, "
        f"vocabulary {manifest.vocab_size}{why_smaller} ({manifest.tokenizer}, with [MASK]), "
        f"{corpus.bytes / 1e6:.1f} MB in {seconds:.1f} s",
        str(TextReport(**manifest.texts or {})),
    )


make_callable(__name__, api.prepare)

if __name__ == "__main__":
    run_verb(main)
