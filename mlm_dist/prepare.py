"""Texts into a prepared corpus: `python -m mlm_dist.prepare PATH... --out DIR`."""

import time
from argparse import ArgumentParser
from pathlib import Path

from mlm_dist.command_line import OneLineParser
from mlm_dist.data.preparation import prepare_corpus
from mlm_dist.data.texts import find_documents
from mlm_dist.errors import UserError, run_verb


def build_parser() -> ArgumentParser:
    """Describe the command line."""
    parser = OneLineParser(
        prog="python -m mlm_dist.prepare",
        description="Turn text files into a corpus to train on.",
        epilog="Example: python -m mlm_dist.prepare my_novels/ --out corpora/novels",
        allow_abbrev=False,
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="text files, and folders with *.txt files")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write the corpus into")
    parser.add_argument(
        "--val", nargs="+", action="extend", type=Path, default=[], metavar="PATH", help="documents to hold out whole"
    )
    parser.add_argument(
        "--val_fraction",
        type=float,
        default=0.05,
        metavar="F",
        help="without --val: tail of every document to hold out (default: %(default)s)",
    )
    parser.add_argument(
        "--tokenizer",
        default="gpt2",
        metavar="NAME",
        help="a tiktoken encoding, or `bpe` to train a byte-level BPE on the texts (default: %(default)s)",
    )
    parser.add_argument("--vocab_size", type=int, metavar="N", help="for bpe: entries, special tokens included")
    parser.add_argument("--encoding", default="utf-8", help="character encoding of the files (default: %(default)s)")
    return parser


def main(arguments: list[str]) -> None:
    """Prepare a corpus and say what it holds."""
    given = build_parser().parse_args(arguments)
    if not 0 <= given.val_fraction < 1:
        raise UserError(f"--val_fraction is {given.val_fraction}: it must be at least 0 and below 1")
    if given.vocab_size is not None and given.tokenizer != "bpe":
        raise UserError(f"--vocab_size goes with --tokenizer bpe; '{given.tokenizer}' has a vocabulary of its own")
    documents = find_documents(given.paths, given.val, given.val_fraction)
    start = time.perf_counter()
    manifest = prepare_corpus(documents, given.out, given.tokenizer, given.vocab_size, given.encoding)
    seconds = time.perf_counter() - start
    size = sum(document.size for document in documents)
    print(
        f"{given.out}: {len(documents)} documents, {manifest.tokens['train']:,} tokens to train on, "
        f"{manifest.tokens['val']:,} held out, vocabulary {manifest.vocab_size} ({manifest.tokenizer}, with [MASK]), "
        f"{size / 1e6:.1f} MB in {seconds:.1f} s"
    )


if __name__ == "__main__":
    run_verb(main)
