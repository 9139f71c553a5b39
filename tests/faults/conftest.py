"""Start, pause and kill real training processes, and compare their run with one that nothing happened to."""

import multiprocessing
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
from tests.conftest import REPOSITORY, run_in_process, start, tiny_flags
from tests.faults.dying import train_and_die

# Checkpoints and evaluations fall on different steps, and every step draws dropout and is logged.
SETTINGS: dict[str, object] = {
    "model__dropout": 0.1,
    "train__max_iters": 240,
    "train__eval_interval": 30,
    "train__micro_batch_size": 4,
    "checkpoint__interval": 20,
}
TIMINGS = ("seconds", "tokens_per_second")

Popen = subprocess.Popen[str]
FORKS = multiprocessing.get_context("forkserver")  # a new process without the seconds in which torch is imported
FORKS.set_forkserver_preload(["mlm_dist.training.job", "mlm_dist.run.trackers", "tests.faults.dying"])


def train_command(corpus: Path, run_dir: Path, processes: int = 1, **overrides: object) -> list[str]:
    """The command that trains the run under test."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--max-restarts=3", "--shutdown-timeout=10"]
    launcher = [*torchrun, f"--nproc_per_node={processes}"] if processes > 1 else []
    flags = tiny_flags(corpus, run_dir, **(SETTINGS | overrides))
    return [sys.executable, *launcher, "-m", "mlm_dist.train", *flags]


def with_script(command: list[str], script: Path, *arguments: object) -> list[str]:
    """The training command with a script in place of the training verb; `arguments` of the script precede the flags."""
    module = command.index("mlm_dist.train")
    return [*command[: module - 1], str(script), *map(str, arguments), *command[module + 1 :]]


@contextmanager
def running(command: list[str], **environment: str) -> Iterator[Popen]:
    """Start a command in the background. On exit, kill it and its children."""
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
def paused(process: Popen) -> Iterator[None]:
    """Pause a process for the duration of the block."""
    process.send_signal(signal.SIGSTOP)
    yield
    process.send_signal(signal.SIGCONT)


def kill_all(process: Popen) -> None:
    """Send SIGKILL to a process and its children, which may lead process groups of their own."""
    for pid in [process.pid, *children(process.pid)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def children(parent: int) -> list[int]:
    """Ids of the children of a process, oldest first."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            after_name = stat.read_text().rpartition(")")[2].split()
            if int(after_name[1]) == parent:
                found.append(int(stat.parent.name))
    return sorted(found)


def wait_until(process: Popen, condition: Callable[[], bool], seconds: float = 120) -> None:
    """Wait until a condition is true. Fail if the process ends first, or after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.002)


def has_reached(run_dir: Path, step: int) -> Callable[[], bool]:
    """A function that returns whether the metrics of a run contain this step or a later one."""
    metrics = run_dir / "metrics.jsonl"
    return lambda: metrics.exists() and any(event["step"] >= step for event in read_events(metrics))


def newest_step(run_dir: Path) -> int:
    """The step of a run's newest checkpoint, or 0 without checkpoints."""
    return max(map(step_of, list_checkpoints(run_dir / "checkpoints")), default=0)


def wait_for_exit(process: Popen) -> tuple[int, str, str]:
    """Wait until a process exits. Return its exit code, stdout and stderr."""
    stdout, stderr = process.communicate(timeout=120)
    return process.returncode, stdout, stderr


def history(run_dir: Path) -> list[dict[str, Any]]:
    """The events of a run, without the timings, which differ from run to run."""
    return [{k: v for k, v in event.items() if k not in TIMINGS} for event in read_events(run_dir / "metrics.jsonl")]


def assert_same_run(run_dir: Path, reference_run: Path, branched_at: int | None = None) -> None:
    """Assert that a run is done and has the same parameters, bit for bit, and the same events as the reference run.

    A branch of the reference run has its events from the evaluation of the step at which it branched on.
    """
    parameters, expected = (torch.load(path / "model.pth", weights_only=True) for path in (run_dir, reference_run))
    assert parameters.keys() == expected.keys()
    for name, parameter in parameters.items():
        assert torch.equal(parameter, expected[name]), name
    events = history(reference_run)
    is_first = [branched_at in (None, event["step"] if "val_loss" in event else -1) for event in events]
    assert history(run_dir) == events[is_first.index(True) :]
    assert (run_dir / "DONE").exists()
    assert not (run_dir / "STOPPED").exists()


def kill_at(point: str, call: int, command: list[str], output: Path) -> None:
    """Train in a process that dies when it reaches a fault point for the `call`-th time."""
    process = FORKS.Process(target=train_and_die, args=(point, call, command[3:], output))
    process.start()
    process.join(120)
    printed = output.read_text()
    assert process.exitcode == -signal.SIGKILL, (point, process.exitcode, printed)
    assert "Traceback" not in printed


def run_to_end(command: list[str]) -> str:
    """Run a training command, which must succeed, in this process if it is for one. Return its stdout."""
    result = run_in_process(command) if command[1:3] == ["-m", "mlm_dist.train"] else start(command)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="session")
def reference_run(corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run, trained by one undisturbed process."""
    run_dir = tmp_path_factory.mktemp("reference") / "run"
    run_to_end(train_command(corpus_folder, run_dir))
    return run_dir


@pytest.fixture(scope="session")
def two_rank_reference(corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run, trained by two undisturbed processes."""
    run_dir = tmp_path_factory.mktemp("reference") / "run"
    run_to_end(train_command(corpus_folder, run_dir, processes=2))
    return run_dir
