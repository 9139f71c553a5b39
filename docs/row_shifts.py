"""Measure what `data.shift_rows` does to the validation loss: `python docs/row_shifts.py CORPUS RUNS`.

CORPUS is a prepared corpus of a few novels, RUNS a new folder. A model like the recipe's but smaller trains at 64 rows
a step for EPOCHS epochs with each seed, without and with shifted rows. The table in docs/performance.md is its output.
"""

import statistics
import sys
from pathlib import Path

import mlm_dist
from mlm_dist.data.corpus import Corpus
from mlm_dist.output import print_result

ROWS, BLOCK_SIZE, EPOCHS, SEEDS = 64, 64, 8, (1, 2, 3)
MODEL = {"model.embedding_dim": 128, "model.heads": 4, "model.blocks": 2}


def train(corpus: Path, runs: Path, seed: int, shift_rows: bool) -> list[float]:
    """The validation losses after each epoch of a run."""
    steps = len(Corpus.open(corpus).train) // BLOCK_SIZE // ROWS
    config = mlm_dist.read_config(
        "novels",
        {
            "data.path": str(corpus),
            "data.shift_rows": shift_rows,
            "run_dir": str(runs / f"seed-{seed}-{'shifted' if shift_rows else 'fixed'}"),
            "seed": seed,
            "precision": "fp32",
            **MODEL,
            "train.batch_size": ROWS,
            "train.max_iters": EPOCHS * steps,
            "train.eval_interval": steps,
            "train.eval_rows": 1 << 20,  # all of them
            "train.log_interval": 50,
            "checkpoint.interval": EPOCHS * steps,
        },
    )
    return [event["val_loss"] for event in mlm_dist.train(config).metrics if event.get("step") and "val_loss" in event]


def main() -> None:
    """Train all runs and print the table."""
    corpus, runs = map(Path, sys.argv[1:])
    losses = {shift: [train(corpus, runs, seed, shift) for seed in SEEDS] for shift in (False, True)}
    print_result("| epochs | same rows in every epoch | shifted rows | difference, seed by seed |\n|---|---|---|---|")
    for epoch in range(EPOCHS):
        fixed, shifted = ([run[epoch] for run in losses[shift]] for shift in (False, True))
        differences = ", ".join(f"{b - a:+.3f}" for a, b in zip(fixed, shifted, strict=True))
        means = f"{statistics.mean(fixed):.3f} | {statistics.mean(shifted):.3f}"
        print_result(f"| {epoch + 1} | {means} | {differences} |")


if __name__ == "__main__":
    main()
