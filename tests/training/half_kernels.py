"""Runs the training verb under torchrun, with stand-ins of the kernels. On rank 1, those of two kernels fail.

Each rank prints which kernels it has switched off.
"""

import os

import pytest

from mlm_dist.exit_codes import run_verb
from mlm_dist.model import kernels
from mlm_dist.output import print_log
from mlm_dist.train import main
from tests.model import stand_in_kernels
from tests.model.stand_in_kernels import fail


def train_and_report(arguments: list[str]) -> None:
    main(arguments)
    print_log(f"rank {os.environ['RANK']}: {sorted(kernels.switched_off())}")


if __name__ == "__main__":
    patch = pytest.MonkeyPatch()
    stand_in_kernels.install(patch)
    if os.environ["RANK"] == "1":
        patch.setattr("mlm_dist.model.norm_kernel.add_norm", fail)
        patch.setattr("mlm_dist.model.attention_kernel.attend", fail)
    run_verb(train_and_report)
