"""Train the judge on the training split of a corpus: `python docs/generation/train_judge.py --corpus DIR --out DIR`."""

import time
from argparse import ArgumentParser
from pathlib import Path
from typing import TYPE_CHECKING

from mlm_dist.arguments import OneLineParser, named_path
from mlm_dist.data.corpus import Corpus
from mlm_dist.errors import UserError
from mlm_dist.exit_codes import run_verb
from mlm_dist.files import refuse_existing
from mlm_dist.output import print_log
from passages import document_texts, documents

if TYPE_CHECKING:
    from judge import Judge

SEED = 1337
ROWS = 16
LEARNING_RATE = 1.5e-3
WARMUP = 100
LOG_INTERVAL = 50
SAVE_INTERVAL = 500


def build_parser() -> ArgumentParser:
    """Build the command-line parser."""
    parser = OneLineParser(
        prog="python docs/generation/train_judge.py",
        description="Train a small causal language model with its own vocabulary, which judges generated text.",
    )
    parser.add_argument("--corpus", type=named_path, required=True, metavar="DIR", help="a prepared corpus")
    parser.add_argument("--out", type=named_path, required=True, metavar="DIR", help="folder for the judge")
    parser.add_argument(
        "--steps", type=int, default=2500, metavar="N", help=f"training steps of {ROWS} rows (default: %(default)s)"
    )
    return parser


def main(arguments: list[str]) -> None:
    """Train the judge, saving it at intervals, and print its validation loss."""
    given = build_parser().parse_args(arguments)
    if given.steps < 1:
        raise UserError(f"--steps is {given.steps}: it must be at least 1")
    refuse_existing(given.out)
    # Imported here, so that --help and user errors do not wait for torch.
    import torch  # noqa: PLC0415

    from judge import Judge  # noqa: PLC0415

    corpus = Corpus.open(given.corpus)
    texts, validation = document_texts(corpus, "train"), document_texts(corpus, "val")
    torch.manual_seed(SEED)
    judge = Judge.untrained(texts)
    train(judge, texts, given.steps, given.out)
    nats, size = sum(judge.nats(validation)), sum(len(text.encode()) for text in validation)
    own, corpus_tokens = sum(len(judge.encode(text)) for text in validation), sum(map(len, documents(corpus, "val")))
    print_log(
        f"validation loss: {nats / size:.4f} nats per byte, {nats / own:.4f} per token of the judge, "
        f"{nats / corpus_tokens:.4f} per token of the corpus"
    )


def train(judge: "Judge", texts: list[str], steps: int, out: Path) -> None:
    """Train on rows sampled from texts, and save into the folder `out`."""
    import numpy as np  # noqa: PLC0415
    import torch  # noqa: PLC0415
    from transformers import get_cosine_schedule_with_warmup  # noqa: PLC0415

    from judge import BLOCK  # noqa: PLC0415
    from mlm_dist.precision import autocast, choose_dtype  # noqa: PLC0415

    ids = torch.from_numpy(np.concatenate([[judge.end_id, *judge.encode(text)] for text in texts]))
    print_log(f"vocabulary {judge.tokenizer.get_vocab_size()}, {len(ids):,} training tokens")
    optimizer = torch.optim.AdamW(judge.model.parameters(), LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = get_cosine_schedule_with_warmup(optimizer, min(WARMUP, steps), steps)
    cpu = torch.device("cpu")
    precision = choose_dtype("auto", cpu)
    first, rest = torch.full((ROWS, 1), judge.end_id), torch.arange(BLOCK - 1)
    start = time.monotonic()
    for step in range(1, steps + 1):
        starts = torch.randint(len(ids) - BLOCK, (ROWS, 1))
        with autocast(cpu, precision):
            loss = judge.losses(torch.cat([first, ids[starts + rest]], 1)).mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(judge.model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % LOG_INTERVAL == 0:
            print_log(f"step {step}/{steps}  loss {loss.item():.4f}  {time.monotonic() - start:.0f} s")
        if step % SAVE_INTERVAL == 0 or step == steps:
            judge.save(out)


if __name__ == "__main__":
    run_verb(main)
