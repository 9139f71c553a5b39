"""Compare generated texts: `python docs/generation/compare.py --judge DIR --corpus DIR --runs RUN_DIR --out DIR`."""

import json
from argparse import ArgumentParser

import numpy as np

from mlm_dist.arguments import OneLineParser, named_path
from mlm_dist.data.corpus import Corpus
from mlm_dist.errors import UserError
from mlm_dist.exit_codes import run_verb
from mlm_dist.files import new_folder, refuse_existing
from mlm_dist.output import print_log
from ngrams import NgramModel, Ngrams
from passages import Passage, documents, validation_passages
from quality import COPIED, Row, measure, table
from verbs import generate, nll_bound

SAMPLING = {
    "random order": ["--order", "random"],
    "random order, top-p 0.9": ["--order", "random", "--top_p", "0.9"],
    "by confidence": ["--order", "confidence"],
}
ORDERS = {"unigram": 1, "5-gram": 5}


def build_parser() -> ArgumentParser:
    """Build the command-line parser."""
    parser = OneLineParser(
        prog="python docs/generation/compare.py",
        description="Generate texts with trained models and n-gram models, and compare them with each other and with "
        "validation text.",
    )
    parser.add_argument(
        "--judge", type=named_path, required=True, metavar="DIR", help="folder of the judge, from train_judge.py"
    )
    parser.add_argument("--corpus", type=named_path, required=True, metavar="DIR", help="a prepared corpus")
    parser.add_argument(
        "--runs", type=named_path, nargs="*", default=[], metavar="RUN_DIR", help="directories of training runs"
    )
    parser.add_argument("--samples", type=int, default=64, metavar="N", help="texts per set (default: %(default)s)")
    parser.add_argument("--length", type=int, default=64, metavar="N", help="tokens per text (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="seed of the texts (default: %(default)s)")
    parser.add_argument(
        "--out", type=named_path, required=True, metavar="DIR", help="folder for samples.jsonl and table.md"
    )
    return parser


def main(arguments: list[str]) -> None:
    """Generate the texts, compute their metrics, write both, and print the table."""
    given = build_parser().parse_args(arguments)
    if given.samples < 1:
        raise UserError(f"--samples is {given.samples}: it must be at least 1")
    if len({run.name for run in given.runs}) < len(given.runs):
        raise UserError("--runs: two folders have the same name, which identifies a run in the table: rename one")
    if given.length < COPIED:
        raise UserError(f"--length is {given.length}: it must be at least {COPIED}")
    refuse_existing(given.out)
    # Imported here, so that --help and user errors do not wait for torch.
    from judge import Judge  # noqa: PLC0415

    judge, corpus = Judge.load(given.judge), Corpus.open(given.corpus)
    tokenizer = corpus.tokenizer
    training_text = Ngrams(np.asarray(corpus.train), tokenizer.vocab_size, tokenizer.end_id, COPIED)
    passages = {"validation text": validation_passages(corpus, given.samples, given.length, given.seed)}
    nats: dict[str, float] = {}
    for name, order in ORDERS.items():
        model = NgramModel(training_text, order, tokenizer.ids_without_text)
        nats[name] = model.nats(documents(corpus, "val"))
        sampled = [model.generate(given.length, [given.seed, sample]) for sample in range(given.samples)]
        passages[name] = [Passage(tokenizer.decode(tokens), tokens) for tokens in sampled]
    for run in given.runs:
        for method, flags in SAMPLING.items():
            passages[f"{run.name}, {method}"] = generate(run, flags, given.samples, given.length, given.seed)
        nats[f"{run.name}, {next(iter(SAMPLING))}"] = nll_bound(run, given.corpus)
    rows = {name: Row(nats.get(name), measure(texts, judge, training_text)) for name, texts in passages.items()}
    with new_folder(given.out) as folder, (folder / "samples.jsonl").open("w", encoding="utf-8") as file:
        for name, texts in passages.items():
            for sample, passage in enumerate(texts):
                line = {"of": name, "sample": sample} | passage._asdict()
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        (folder / "table.md").write_text(table(rows) + "\n", encoding="utf-8")
    print_log(table(rows))


if __name__ == "__main__":
    run_verb(main)
