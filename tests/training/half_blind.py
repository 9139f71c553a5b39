"""Runs the training verb under torchrun. Rank 1 cannot open the corpus, as on a machine without it."""

import os
from pathlib import Path

from mlm_dist.data.corpus import Corpus, Verify
from mlm_dist.errors import UserError
from mlm_dist.exit_codes import run_verb
from mlm_dist.train import main


def fail_to_open(folder: Path, verify: Verify = "once") -> Corpus:
    raise UserError(f"{folder}: not there")


if __name__ == "__main__":
    if os.environ["RANK"] == "1":
        Corpus.open = fail_to_open  # type: ignore[method-assign]
    run_verb(main)
