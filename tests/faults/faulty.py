"""Runs in place of the training verb, with losses that come to NaN on one rank at chosen steps.

    faulty.py RANK FIRST LAST FLAGS...

Rank RANK's loss is NaN at the steps FIRST to LAST, counted from 1.
"""

import os
import sys

import torch

from mlm_dist.command_line import run_verb
from mlm_dist.model import loss
from mlm_dist.train import main
from mlm_dist.training import trainer
from mlm_dist.training.state import StepResult

train_step = trainer.Trainer.train_step
masked_cross_entropy = loss.masked_cross_entropy


def fail_between(first: int, last: int) -> None:
    """Have the loss come to NaN at some steps."""
    now = [0]

    def counting(self: trainer.Trainer) -> StepResult:
        now[0] = self.state.step + 1
        return train_step(self)

    def faulty(*arguments: torch.Tensor) -> torch.Tensor:
        result = masked_cross_entropy(*arguments)  # type: ignore[arg-type]
        return result * float("nan") if first <= now[0] <= last else result

    trainer.Trainer.train_step = counting  # type: ignore[method-assign,assignment]
    loss.masked_cross_entropy = faulty


if __name__ == "__main__":
    rank, first, last, *flags = sys.argv[1:]
    sys.argv[1:] = flags
    if os.environ.get("RANK", "0") == rank:
        fail_between(int(first), int(last))
    run_verb(main)
