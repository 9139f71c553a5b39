"""A run to break, the same run unbroken, and the tools to break it with: all real processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from mlm_dist.run.checkpoint import list_checkpoints, step_of
from mlm_dist.run.metrics import read_events
from tests.conftest import REPOSITORY, start, tiny_flags

# Saves and evaluations at different steps, randomness at every step, a line of metrics for each.
SETTINGS: dict[str, object] = {
    "model__dropout": 0.1,
    "train__max_iters": 240,
    "train__eval_interval": 30,
    "train__micro_batch_size": 4,
    "checkpoint__interval": 20,
}
TIMINGS = ("seconds", "tokens_per_second")

Popen = subprocess.Popen[str]


def train_command(corpus: Path, run_dir: Path, processes: int = 1, **overrides: object) -> list[str]:
    """The command that trains the run that is to be broken."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--max-restarts=3", "--shutdown-timeout=10"]
    launcher = [*torchrun, f"--nproc_per_node={processes}"] if processes > 1 else []
    flags = tiny_flags(corpus, run_dir, **(SETTINGS | overrides))
    return [sys.executable, *launcher, "-m", "mlm_dist.train", *flags]


def in_its_place(command: list[str], script: Path, *arguments: object) -> list[str]:
    """A training command with a script, and its own arguments before the flags, in the place of the training verb."""
    module = command.index("mlm_dist.train")
    return [*command[: module - 1], str(script), *map(str, arguments), *command[module + 1 :]]


@contextmanager
def running(command: list[str], **environment: str) -> Iterator[Popen]:
    """Start a command in the background; at the end it is killed, with all that it has started."""
    settings = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"} | environment
    process = subprocess.Popen(
        command, cwd=REPOSITORY, env=settings, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        yield process
    finally:
        kill_all(process)
        process.communicate()


@contextmanager
def held(process: Popen) -> Iterator[None]:
    """Let a process sleep meanwhile."""
    process.send_signal(signal.SIGSTOP)
    yield
    process.send_signal(signal.SIGCONT)


def kill_all(process: Popen) -> None:
    """Send KILL to a process and to its children, which may lead groups of their own."""
    for pid in [process.pid, *children(process.pid)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def children(parent: int) -> list[int]:
    """The processes that a process has started, the oldest first."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # one that has just ended
            after_name = stat.read_text().rpartition(")")[2].split()
            if int(after_name[1]) == parent:
                found.append(int(stat.parent.name))
    return sorted(found)


def wait_until(process: Popen, condition: Callable[[], bool], seconds: float = 120) -> None:
    """Wait for a condition while a process runs."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.002)


def has_reached(run_dir: Path, step: int) -> Callable[[], bool]:
    """Whether a run's metrics have a step."""
    metrics = run_dir / "metrics.jsonl"
    return lambda: metrics.exists() and any(event["step"] >= step for event in read_events(metrics))


def newest_step(run_dir: Path) -> int:
    """The step of a run's newest checkpoint; 0 where it has none."""
    return max(map(step_of, list_checkpoints(run_dir / "checkpoints")), default=0)


def end(process: Popen) -> tuple[int, str, str]:
    """Wait for the end of a process; return its exit code, stdout and stderr."""
    stdout, stderr = process.communicate(timeout=120)
    return process.returncode, stdout, stderr


def history(run_dir: Path) -> list[dict[str, Any]]:
    """The metrics of a run without what differs from one machine's minute to the next."""
    return [{k: v for k, v in event.items() if k not in TIMINGS} for event in read_events(run_dir / "metrics.jsonl")]


def assert_same_run(run_dir: Path, unbroken: Path) -> None:
    """Assert that a run has come to the same bits by the same steps, each of them once."""
    weights, expected = (torch.load(path / "model.pth", weights_only=True) for path in (run_dir, unbroken))
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        assert torch.equal(weight, expected[name]), name
    assert history(run_dir) == history(unbroken)
    assert (run_dir / "DONE").exists()
    assert not (run_dir / "STOPPED").exists()


def complete(command: list[str]) -> str:
    """Run a command to its end; return what it printed."""
    result = start(command)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="session")
def unbroken(corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run, trained by one process that nothing happened to."""
    run_dir = tmp_path_factory.mktemp("unbroken") / "run"
    complete(train_command(corpus_folder, run_dir))
    return run_dir


@pytest.fixture(scope="session")
def unbroken_pair(corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run, trained by two processes that nothing happened to."""
    run_dir = tmp_path_factory.mktemp("unbroken") / "run"
    complete(train_command(corpus_folder, run_dir, processes=2))
    return run_dir
