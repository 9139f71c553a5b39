"""Prepare a corpus from texts: `python -m mlm_dist.prepare PATH... --gutenberg N... --out DIR`."""

import time

from mlm_dist import api
from mlm_dist.callable_module import make_callable
from mlm_dist.data.documents import DocumentIndex
from mlm_dist.data.splitting import describe_validation, plural
from mlm_dist.data.text_report import TextReport
from mlm_dist.errors import UserError
from mlm_dist.exit_codes import run_verb
from mlm_dist.output import print_result
from mlm_dist.prepare_arguments import build_parser


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
