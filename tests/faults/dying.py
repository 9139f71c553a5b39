"""Runs in place of the training verb, and sends itself SIGKILL at a chosen point.

    dying.py POINT CALL RANK FLAGS...

Rank RANK dies when it reaches POINT (see mlm_dist/fault_points.py) for the CALL-th time, the first one being 1; under
torchrun in the attempts before the last that --max-restarts grants, at call CALL of each. With POINT followed by
` in half`, every file that is being written is cut in half first, as if the process had died while writing it.
"""

import os
import signal
import sys
from pathlib import Path

from mlm_dist import fault_points
from mlm_dist.command_line import run_verb
from mlm_dist.train import main

LAST_ATTEMPT = 3
IN_HALF = " in half"


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def cut_in_half() -> None:
    """Cut the files that are open for writing and not empty: those with a temporary name."""
    for descriptor in Path("/proc/self/fd").iterdir():
        path = descriptor.readlink() if descriptor.is_symlink() else Path()
        if "partial" in str(path) and path.is_file():
            os.truncate(path, path.stat().st_size // 2)


def arm(point: str, call: int) -> None:
    """Have this process die at one of its visits to a point."""
    calls = 0

    def on_reached(name: str) -> None:
        nonlocal calls
        calls += name == point.removesuffix(IN_HALF)
        if calls == call:
            if point.endswith(IN_HALF):
                cut_in_half()
            die()

    fault_points.on_reached = on_reached


if __name__ == "__main__":
    point, call, rank, *flags = sys.argv[1:]
    sys.argv[1:] = flags
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if os.environ.get("RANK", "0") == rank and attempt < LAST_ATTEMPT:
        arm(point, int(call))
    run_verb(main)
