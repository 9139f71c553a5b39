"""Runs the training verb under torchrun with a rank 1 that does not see the corpus, as on a machine of its own."""

import os
from pathlib import Path

from mlm_dist.command_line import run_verb
from mlm_dist.data.corpus import Corpus, Verify
from mlm_dist.errors import UserError
from mlm_dist.train import main


def open_nothing(folder: Path, verify: Verify) -> Corpus:
    raise UserError(f"{folder}: not there")


if __name__ == "__main__":
    if os.environ["RANK"] == "1":
        Corpus.open = open_nothing  # type: ignore[method-assign]
    run_verb(main)
