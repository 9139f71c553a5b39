"""Runs under torchrun: calls the collectives of `Processes`. Each rank prints one line with its results."""

import sys
import time

import torch

from mlm_dist.distributed import Processes
from mlm_dist.errors import RunError, UserError
from mlm_dist.exit_codes import run_verb


def long_work() -> str:
    time.sleep(5)
    return "a result"


def failing_work() -> str:
    raise UserError("the work is impossible")


def main(_: list[str]) -> None:
    processes = Processes("cpu", timeout=2 / 60)
    lines = [processes.on_rank_zero(long_work)]
    worked = ""

    def work() -> str:
        nonlocal worked
        worked = "working"
        return ""

    processes.on_rank_zero(work)
    lines.append(" ".join(processes.all_gather(worked or "idle")))
    try:
        processes.on_rank_zero(failing_work)
    except UserError as error:
        lines.append(str(error))
    try:
        with processes.raise_on_all_ranks():
            if processes.rank == 1:
                raise UserError("my disk is missing")
    except UserError as error:
        lines.append(str(error).split(" (")[0] + (" on rank 1" if "rank 1" in str(error) else ""))
    try:
        with processes.raise_on_all_ranks():
            if processes.rank == 1:
                raise RunError("no space")
    except UserError as error:
        lines.append(type(error).__name__)
    try:
        with processes.raise_on_all_ranks():
            if processes.rank == 1:
                raise ValueError("a fault of ours")
    except (ValueError, UserError) as error:  # rank 1 has its own error, the others a UserError
        lines.append("a fault of ours" if "a fault of ours" in str(error) else str(error))
    lines.append(" ".join(processes.all_gather(f"note of {processes.rank}")))
    long_notes = [f"{rank}й" * 3_000_000 for rank in range(processes.world_size)]  # each 9 MB in UTF-8
    lines.append(f"long notes {processes.all_gather(long_notes[processes.rank]) == long_notes}")
    try:
        processes.check_same("precision", "fp32" if processes.rank == 2 else "bf16")
    except UserError as error:
        lines.append(str(error).partition(";")[0])
    lines.append(str(processes.sum_(torch.tensor(processes.rank + 1)).item()))
    lines.append(f"{processes.any(processes.rank == 2)} {processes.any(False)}")
    answers = [processes.any_so_far(processes.rank == 2 and call in (0, 2)) for call in range(6)]
    lines.append(" ".join(map(str, answers)))
    sys.stdout.write(f"rank {processes.rank}: {'; '.join(lines)}\n")
    sys.stdout.flush()
    processes.close()


if __name__ == "__main__":
    run_verb(main)
