"""Experiment trackers with their real libraries, offline: what they log, and that their failures do not stop a run."""

import struct
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlm_dist.errors import UserError
from mlm_dist.run import trackers
from mlm_dist.run.metrics import read_events
from mlm_dist.run.run_dir import RunDir
from mlm_dist.run.trackers import TRACKERS, TrackedRun, check_trackers
from tests.run.conftest import open_recorder, record, training_event

Logged = tuple[dict[str, object], list[tuple[int, float]]]
"""The config in a tracker, and (step, training loss) in the order in which they were logged."""


def read_tensorboard(path: Path) -> Logged:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(path / "tensorboard"))
    events.Reload()
    return {}, [(event.step, event.value) for event in events.Scalars("train/loss")]


def read_mlflow(path: Path) -> Logged:
    client = pytest.importorskip("mlflow").MlflowClient(tracking_uri=f"sqlite:///{path}/mlflow.db")
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    history = client.get_metric_history(run.info.run_id, "train/loss")
    return run.data.params, [(metric.step, metric.value) for metric in history]


def wandb_records(file: Path) -> Iterator[Any]:
    """The records of an offline run, whose file is a LevelDB log: blocks of 32 kB with headers of 7 bytes."""
    messages = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    content, position, message = file.read_bytes(), 7, b""
    while position + 7 <= len(content):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        length, kind = struct.unpack("<HB", content[position + 4 : position + 7])
        message += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            parsed = messages.Record()
            parsed.ParseFromString(message)
            message = b""
            yield parsed


def complete_wandb_records(file: Path) -> list[Any]:
    """The records of a finished run, once the process that writes them has written the last one."""
    deadline = time.monotonic() + 60
    while not (entries := list(wandb_records(file))) or entries[-1].WhichOneof("record_type") != "exit":
        assert time.monotonic() < deadline, f"{file} is incomplete"
        time.sleep(0.05)
    return entries


def read_wandb(path: Path) -> Logged:
    pytest.importorskip("wandb")
    config: dict[str, object] = {}
    losses: list[tuple[int, float]] = []
    ids: set[str] = set()
    for file in sorted(path.glob("wandb/offline-run-*/*.wandb")):
        for entry in complete_wandb_records(file):
            if entry.WhichOneof("record_type") == "run":
                ids.add(entry.run.run_id)
                config |= {update.key: update.value_json for update in entry.run.config.update}
            elif entry.WhichOneof("record_type") == "history":
                values = {item.key or item.nested_key[0]: item.value_json for item in entry.history.item}
                losses += [(int(values["_step"]), float(values["train/loss"]))] if "train/loss" in values else []
    assert len(ids) == 1, "`wandb sync` would create several runs"
    return config, losses


READERS = {"tensorboard": read_tensorboard, "wandb": read_wandb, "mlflow": read_mlflow}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRACKERS)
def test_a_resumed_run_is_logged_as_one_run_without_repeated_steps(name: str, folder: RunDir) -> None:
    record(folder, 0, 7, name)
    record(folder, 4, 6, name)  # killed at step 7 and again at step 6, after checkpoints at step 4 and 5
    record(folder, 5, 9, name)
    config, losses = READERS[name](folder.path)
    assert losses == [(step, 2.0) for step in range(1, 10)]
    assert name == "tensorboard" or config["train.max_iters"] == "100"


@pytest.mark.slow
@pytest.mark.parametrize("name", TRACKERS)
def test_a_run_from_step_0_logs_all_steps(name: str, folder: RunDir) -> None:
    record(folder, 0, 3, name)
    if name == "tensorboard":  # replaces the earlier run; the others would have two runs
        record(folder, 0, 2, name)
        assert READERS[name](folder.path)[1] == [(1, 2.0), (2, 2.0)]


def test_training_and_evaluation_at_the_same_step_are_both_logged(
    folder: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[tuple[int, dict[str, float]]] = []
    monkeypatch.setitem(TRACKERS, "list", lambda run: FakeTracker(lambda values, step: logged.append((step, values))))
    recorder = open_recorder(folder, 0, "list")
    recorder.log_step(**training_event(5))
    recorder.log_evaluation(step=5, val_loss=1.5, val_accuracy=0.25)
    recorder.close()
    (first, training), (second, validation) = logged
    assert (first, second) == (5, 5)
    assert training["train/loss"] == 2.0
    assert validation == {"val/loss": 1.5, "val/accuracy": 0.25}


class FakeTracker:
    def __init__(self, log: Callable[[dict[str, float], int], object]) -> None:
        self.log = log
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


def test_a_failing_tracker_is_closed_with_a_warning_and_does_not_stop_the_run(
    folder: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(values: dict[str, float], step: int) -> None:
        raise ConnectionError("no route to host")

    tracker = FakeTracker(fail)
    monkeypatch.setitem(TRACKERS, "failing", lambda run: tracker)
    record(folder, 0, 3, "failing")
    assert len(read_events(folder.metrics)) == 3
    assert tracker.closed == 1
    warning = "report_to failing failed (ConnectionError: no route to host); metrics.jsonl has all metrics"
    assert capsys.readouterr().err.count(warning) == 1


def test_a_tracker_that_cannot_start_does_not_stop_the_run(
    folder: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise AttributeError("of another version")

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=broken))
    record(folder, 0, 2, "tensorboard")
    assert len(read_events(folder.metrics)) == 2
    assert "report_to tensorboard failed (AttributeError: of another version)" in capsys.readouterr().err


def test_a_tracker_gets_the_config_the_step_and_the_path_of_the_run(
    folder: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[TrackedRun] = []

    def remember(run: TrackedRun) -> FakeTracker:
        runs.append(run)
        return FakeTracker(lambda values, step: None)

    monkeypatch.setitem(TRACKERS, "list", remember)
    record(folder, 0, 2, "list")
    record(folder, 2, 3, "list")
    first, second = runs
    assert first.run_id == second.run_id
    assert (first.step, second.step, first.path) == (0, 2, folder.path)
    assert first.config["optim.lr"] == 1e-3


def test_a_damaged_list_of_logged_steps_starts_a_new_run(folder: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    ids: list[str] = []

    def remember(run: TrackedRun) -> FakeTracker:
        ids.append(run.run_id)
        return FakeTracker(lambda values, step: None)

    monkeypatch.setitem(TRACKERS, "list", remember)
    record(folder, 0, 2, "list")
    for damage in (
        "",
        "[",
        "[]",
        "{}",
        '{"run_id": "a", "last_steps": [1]}',
        '{"run_id": "a", "last_steps": {"a": null}}',
    ):
        (folder.path / "tracker-list.json").write_text(damage)
        record(folder, 2, 3, "list")
    assert len(set(ids)) == 7


def test_an_unknown_tracker_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="report_to: tensorbord is not a tracker; the trackers are tensorboard, wandb"):
        check_trackers(["tensorbord"])


def test_a_tracker_that_is_not_installed_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None if name == "wandb" else find_spec(name))
    with pytest.raises(UserError, match=r"report_to: wandb is not installed: pip install 'mlm_dist\[wandb\]'"):
        check_trackers(["tensorboard", "wandb"])
