"""Runs in place of the training verb, and sends itself SIGKILL at a chosen moment.

    dying.py MODULE:FUNCTION CALL MOMENT RANK FLAGS...

Rank RANK dies `before`, `amid` or `after` the CALL-th call of a function, the first one being 1; under torchrun in the
attempts before the last that --max-restarts grants, at call CALL of each. `amid` is for functions that write: a part of
what they should write is on disk by then.
"""

import importlib
import os
import signal
import sys
from collections.abc import Callable
from typing import IO, Any

from mlm_dist.command_line import run_verb
from mlm_dist.train import main

LAST_ATTEMPT = 3


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class HalfFile:
    """Stands for a file, and dies once it was given more than a few bytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file

    def write(self, content: bytes) -> None:
        self.file.write(bytes(content)[: len(content) // 2])
        self.file.flush()
        if len(content) > 100:
            die()

    def flush(self) -> None:
        self.file.flush()


def arm(place: str, call: int, moment: str) -> None:
    """Have a function kill the process at one of its calls."""
    module, _, name = place.partition(":")
    *owners, name = name.split(".")
    owner: Any = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    function: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def dying(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != call:
            return function(*arguments, **options)
        if moment == "before":
            die()
        if moment == "amid":
            arguments = tuple(HalfFile(a) if hasattr(a, "write") else a for a in arguments)
        result = function(*arguments, **options)
        die()
        return result

    setattr(owner, name, dying)


if __name__ == "__main__":
    place, call, moment, rank, *flags = sys.argv[1:]
    sys.argv[1:] = flags
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if os.environ.get("RANK", "0") == rank and attempt < LAST_ATTEMPT:
        arm(place, int(call), moment)
    run_verb(main)
