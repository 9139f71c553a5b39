"""A run directory, and events to record in it."""

from pathlib import Path

import pytest

from mlm_dist.config import Config, TrainConfig
from mlm_dist.run.recorder import Recorder
from mlm_dist.run.run_dir import RunDir


@pytest.fixture
def folder(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


def training_event(step: int, **others: float) -> dict[str, float]:
    values = {"epoch": 0.5, "loss": 2.0, "lr": 1e-3, "grad_norm": 1.0, "tokens": 100 * step, "seconds": 2.0 * step}
    return {"step": step, **values, **others}


def open_recorder(run: RunDir, step: int = 0, *trackers: str) -> Recorder:
    """The recorder of a run of 100 steps."""
    config = Config(report_to=list(trackers), train=TrainConfig(max_iters=100))
    return Recorder.open(run, config, step, tokens=100 * step, seconds=2.0 * step)


def record(run: RunDir, after: int, last: int, *trackers: str) -> None:
    """Record the steps `after` + 1 to `last`."""
    recorder = open_recorder(run, after, *trackers)
    for step in range(after + 1, last + 1):
        recorder.log_step(**training_event(step))
    recorder.close()
