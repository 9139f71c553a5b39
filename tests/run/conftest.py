"""A run directory, and events to record in it."""

from pathlib import Path

import pytest

from mlm_dist.run.recorder import Recorder
from mlm_dist.run.run_dir import RunDir


@pytest.fixture
def folder(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


def training_event(step: int, **others: float) -> dict[str, float]:
    values = {"epoch": 0.5, "loss": 2.0, "lr": 1e-3, "grad_norm": 1.0, "tokens": 100 * step, "seconds": 2.0 * step}
    return {"step": step, **values, **others}


def record(run: RunDir, first: int, last: int) -> None:
    recorder = Recorder.of_run(run, step=first, tokens=100 * first, seconds=2.0 * first, max_iters=100)
    for step in range(first + 1, last + 1):
        recorder.training(**training_event(step))
    recorder.close()
