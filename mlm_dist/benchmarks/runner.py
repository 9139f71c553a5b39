"""Starting the processes of candidates, sending them commands in turns, and ending them."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from mlm_dist.config import Config
from mlm_dist.errors import RunError, UserError

SERVE = "from mlm_dist.benchmarks.candidate import serve; serve()"


class Turn(NamedTuple):
    """The commands of a turn: first steps that are not timed, then steps that are."""

    warm_up: str
    timed: str


GROUP_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Runner:
    """A candidate that waits for commands: one process, or one per rank.

    Args:
        name: `mlm_dist` or the name of a peer.
        config: what it trains.
        world_size: number of processes; None for a single one without a process group.
        threads: of each process; None for torch's default.

    Raises:
        UserError: the candidate refuses the config.
        RunError: the candidate ended before it was ready.
    """

    def __init__(self, name: str, config: Config, world_size: int | None = None, threads: int | None = None) -> None:
        self.name = name
        # Created here, not by the processes that write checkpoints into it: they may be killed before they remove it.
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
        self._errors = [folder / f"stderr-{rank}" for rank in range(world_size or 1)]
        environment = {key: value for key, value in os.environ.items() if key not in GROUP_VARIABLES}
        if threads:
            environment["OMP_NUM_THREADS"] = str(threads)
        if world_size:
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": str(world_size)}
        self._ranks = [
            subprocess.Popen(
                [sys.executable, "-c", SERVE, name, self._folder.name],
                env=environment | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if world_size else {}),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors.open("w"),
                text=True,
            )
            for rank, errors in enumerate(self._errors)
        ]
        self._receive()

    def send(self, command: str) -> list[Any]:
        """Send a command to all ranks and wait for their replies, one per rank.

        Raises:
            UserError: a rank refuses, because of a user error.
            RunError: a rank has ended.
        """
        for rank in self._ranks:
            assert rank.stdin is not None
            try:
                rank.stdin.write(f"{command}\n")
                rank.stdin.flush()
            except BrokenPipeError:
                pass  # the process has ended; `_receive` reports it
        return self._receive()

    def max_over_ranks(self, command: str) -> float:
        """Send a command to all ranks and return the largest reply."""
        return float(max(self.send(command)))

    def end(self) -> None:
        """End the processes."""
        for rank in self._ranks:
            rank.kill()
            rank.communicate()
        self._folder.cleanup()

    def _receive(self) -> list[Any]:
        replies = []
        for i, rank in enumerate(self._ranks):
            assert rank.stdout is not None
            line = rank.stdout.readline()
            reply = json.loads(line) if line else {"died": self._last_error_line(i)}
            if isinstance(reply, dict) and reply.keys() & {"user_error", "died"}:
                self.end()
                if line:
                    raise UserError(reply["user_error"])
                raise RunError(f"the {self.name} process ended: {reply['died']}")
            replies.append(reply)
        return replies

    def _last_error_line(self, i: int) -> str:
        self._ranks[i].wait()
        lines = self._errors[i].read_text(encoding="utf-8").strip().splitlines()
        return lines[-1] if lines else f"exit code {self._ranks[i].returncode}"


@contextmanager
def running(runners: Sequence[Runner]) -> Iterator[Sequence[Runner]]:
    """End runners after the block, even if it fails."""
    with ExitStack() as stack:
        for runner in runners:
            stack.callback(runner.end)
        yield runners


def take_turns(runners: Sequence[Runner], turns: Sequence[Turn], rounds: int) -> list[list[float]]:
    """Let the runners take turns, `rounds` times, so that a disturbance of the machine affects all of them.

    Each runs untimed steps first, because its caches and memory pages were evicted during the turns of the others.

    Returns:
        For each runner, the reply of the slowest rank in each round.
    """
    replies: list[list[float]] = [[] for _ in runners]
    for _ in range(rounds):
        for runner, turn, own_replies in zip(runners, turns, replies, strict=True):
            runner.send(turn.warm_up)
            own_replies.append(runner.max_over_ranks(turn.timed))
    return replies


def free_port() -> str:
    """A port that no process listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
