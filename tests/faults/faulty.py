"""Runs in place of the training verb. The loss of one rank is NaN at chosen steps.

    faulty.py RANK FIRST LAST FLAGS...

The loss of rank RANK is NaN at the steps FIRST to LAST, counted from 1.
"""

import os
import sys
from typing import Any

import torch

from mlm_dist.exit_codes import run_verb
from mlm_dist.model import loss
from mlm_dist.train import main
from mlm_dist.training import trainer
from mlm_dist.training.state import StepResult

train_step = trainer.Trainer.train_step
masked_cross_entropy = loss.masked_cross_entropy


def make_loss_nan(first: int, last: int) -> None:
    """Make the loss NaN at the steps `first` to `last`."""
    step = 0

    def counted_step(self: trainer.Trainer) -> StepResult:
        nonlocal step
        step = self.state.step + 1
        return train_step(self)

    def faulty(*arguments: Any) -> torch.Tensor:
        result = masked_cross_entropy(*arguments)
        return result * float("nan") if first <= step <= last else result

    trainer.Trainer.train_step = counted_step  # type: ignore[method-assign]
    loss.masked_cross_entropy = faulty  # type: ignore[assignment]


if __name__ == "__main__":
    rank, first, last, *flags = sys.argv[1:]
    sys.argv[1:] = flags
    if os.environ.get("RANK", "0") == rank:
        make_loss_nan(int(first), int(last))
    run_verb(main)
