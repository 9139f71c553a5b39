"""Prepare a corpus from texts: `python -m mlm_dist.prepare PATH... --gutenberg N... --out DIR`."""

import time
from argparse import ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter

from mlm_dist.command_line import OneLineParser, named_path, run_verb
from mlm_dist.data.preparation import prepare_corpus
from mlm_dist.data.splitting import describe_held_out, hold_out
from mlm_dist.data.texts import find_documents
from mlm_dist.errors import UserError
from mlm_dist.files import refuse_existing
from mlm_dist.output import print_result
from mlm_dist.version import __version__


def build_parser() -> ArgumentParser:
    """Build the command-line parser."""
    parser = OneLineParser(
        prog="python -m mlm_dist.prepare",
        description="Encode text files and books of Project Gutenberg into a corpus to train on.",
        epilog="examples:\n"
        "  python -m mlm_dist.prepare my_novels/ --out corpora/novels\n"
        "  python -m mlm_dist.prepare --gutenberg 1342 2701 --out corpora/two",
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "paths", nargs="*", type=named_path, metavar="PATH", help="text files, and folders of *.txt files"
    )
    parser.add_argument(
        "--gutenberg",
        nargs="+",
        action="extend",
        type=book_number,
        default=[],
        metavar="N",
        help="books by their number at Project Gutenberg: downloaded once, then read from a cache",
    )
    parser.add_argument(
        "--mirror",
        type=mirror,
        default="https://www.gutenberg.org",
        metavar="URL",
        help="download books from a mirror of Project Gutenberg with cache/epub/N/pgN.txt, as it asks programs to "
        "do that want many (default: %(default)s)",
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
    parser.add_argument(
        "--tokenizer",
        default="gpt2",
        metavar="NAME",
        help="a tiktoken encoding, or `bpe` to train a byte-level BPE on the texts (default: %(default)s)",
    )
    parser.add_argument(
        "--vocab_size", type=int, metavar="N", help="for bpe: vocabulary size, including special tokens"
    )
    parser.add_argument("--encoding", default="utf-8", help="character encoding of the files (default: %(default)s)")
    return parser


def mirror(text: str) -> str:
    """Parse the URL of a mirror."""
    if not text.startswith(("https://", "http://")):
        raise ArgumentTypeError(f"'{text}' is no address, which begins with https:// or http://")
    return text


def book_number(text: str) -> int:
    """Parse the Project Gutenberg number of a book."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ArgumentTypeError(
            f"'{text}' is no number of a book: https://www.gutenberg.org/ebooks/1342 has number 1342"
        )
    return int(text)


def main(arguments: list[str]) -> None:
    """Prepare a corpus and print a summary."""
    given = build_parser().parse_args(arguments)
    if not 0 <= given.val_fraction < 1:
        raise UserError(f"--val_fraction is {given.val_fraction}: it must be at least 0 and below 1")
    if given.vocab_size is not None and given.tokenizer != "bpe":
        raise UserError(f"--vocab_size goes with --tokenizer bpe; '{given.tokenizer}' has a vocabulary of its own")
    if not given.paths and not given.gutenberg:
        raise UserError("nothing to prepare: give a PATH of text files, or numbers after --gutenberg, or both")
    if given.gutenberg and given.encoding != "utf-8":
        raise UserError(
            f"--encoding {given.encoding} does not go with --gutenberg, whose books are utf-8: leave one out"
        )
    refuse_existing(given.out)
    documents = find_documents(given.paths, given.val) if given.paths or given.val else []
    if given.gutenberg:
        from mlm_dist.data.gutenberg import fetch_books  # noqa: PLC0415 (`requests` is slow to import)

        documents += fetch_books(given.gutenberg, given.mirror, f"mlm_dist/{__version__}")
    if not given.val:
        documents = hold_out(documents, given.val_fraction)
    start = time.perf_counter()
    manifest = prepare_corpus(documents, given.out, given.tokenizer, given.vocab_size, given.encoding)
    seconds = time.perf_counter() - start
    size = sum(document.size for document in documents)
    fewer = (
        f" instead of {given.vocab_size}, since every word of the texts is a token already and no pair is left to merge"
        if given.vocab_size is not None and manifest.vocab_size < given.vocab_size
        else ""
    )
    held_out = f" ({describe_held_out(manifest)})" if manifest.tokens["val"] else ""
    print_result(
        f"{given.out}: {len(documents)} documents, {manifest.tokens['train']:,} tokens to train on, "
        f"{manifest.tokens['val']:,} held out{held_out}, "
        f"vocabulary {manifest.vocab_size}{fewer} ({manifest.tokenizer}, with [MASK]), "
        f"{size / 1e6:.1f} MB in {seconds:.1f} s"
    )


if __name__ == "__main__":
    run_verb(main)
