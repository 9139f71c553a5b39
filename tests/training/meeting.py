"""Runs under torchrun: exercises how processes act together. Prints a line a rank and case."""

import os
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from mlm_dist.errors import UserError
from mlm_dist.training.distributed import Processes

start_group = dist.init_process_group


def start_impatient_group(*arguments: object, **options: object) -> None:
    """Collectives of this group time out after two seconds instead of half an hour."""
    start_group(*arguments, timeout=timedelta(seconds=2), **options)  # type: ignore[arg-type]


def long_work() -> str:
    time.sleep(5)
    return "a result"


def failing_work() -> str:
    raise UserError("the work is impossible")


def main() -> None:
    dist.init_process_group = start_impatient_group
    processes = Processes("cpu")
    lines = [processes.first_alone(long_work)]
    try:
        processes.first_alone(failing_work)
    except UserError as error:
        lines.append(str(error))
    try:
        with processes.together():
            if processes.rank == 1:
                raise UserError("my disk is missing")
    except UserError as error:
        lines.append(str(error).split(" (")[0] + (" on rank 1" if "rank 1" in str(error) else ""))
    lines.append(str(processes.sum_(torch.tensor(processes.rank + 1)).item()))
    sys.stdout.write(f"rank {processes.rank}: {'; '.join(lines)}\n")
    sys.stdout.flush()
    processes.barrier()
    os._exit(0)


if __name__ == "__main__":
    main()
