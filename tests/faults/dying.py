"""Runs in place of the training verb, and kills itself with SIGKILL at a fault point.

    dying.py POINT:CALL[,POINT:CALL...] RANK FLAGS...

Rank RANK dies when it reaches POINT (see mlm_dist/fault_points.py) for the CALL-th time, counted from 1. Under torchrun
it dies in every attempt except the last one that --max-restarts allows: in each at a point of its own, if there are
several. If POINT ends in ` in half`, every file that is being written is first truncated to half its size, as if the
process had died while writing it.
"""

import os
import signal
import sys
from pathlib import Path

import torch

from mlm_dist import fault_points
from mlm_dist.exit_codes import run_verb
from mlm_dist.train import main

LAST_ATTEMPT = 3
IN_HALF = " in half"


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def truncate_open_files() -> None:
    """Truncate every file that is being written, which has a temporary name, to half its size."""
    for descriptor in Path("/proc/self/fd").iterdir():
        path = descriptor.readlink() if descriptor.is_symlink() else Path()
        if "partial" in str(path) and path.is_file():
            os.truncate(path, path.stat().st_size // 2)


def die_at(point: str, call: int) -> None:
    """Make this process die when it reaches a fault point for the `call`-th time."""
    calls = 0

    def on_reached(name: str) -> None:
        nonlocal calls
        calls += name == point.removesuffix(IN_HALF)
        if calls == call:
            if point.endswith(IN_HALF):
                truncate_open_files()
            die()

    fault_points.on_reached = on_reached


def train_and_die(point: str, call: int, flags: list[str], output: Path) -> None:
    """Train in this process, which dies at a fault point. Its stdout and stderr go to a file."""
    torch.set_num_threads(1)
    with output.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv[1:] = flags
    die_at(point, call)
    run_verb(main)


if __name__ == "__main__":
    kills, rank, *flags = sys.argv[1:]
    sys.argv[1:] = flags
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if os.environ.get("RANK", "0") == rank and attempt < LAST_ATTEMPT:
        points = kills.split(",")
        point, call = points[attempt % len(points)].split(":")
        die_at(point, int(call))
    run_verb(main)
