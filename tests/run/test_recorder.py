import json
import time
from types import SimpleNamespace

import pytest

from mlm_dist.run.metrics import read_events
from mlm_dist.run.recorder import Stopwatch
from mlm_dist.run.run_dir import RunDir
from tests.run.conftest import open_recorder, record, training_event


def test_events_are_appended_in_order(folder: RunDir) -> None:
    record(folder, 0, 3)
    events = read_events(folder.metrics)
    assert events == [training_event(step) | {"tokens_per_second": 50.0} for step in (1, 2, 3)]


def test_resuming_drops_the_events_after_the_checkpoint(folder: RunDir) -> None:
    record(folder, 0, 7)
    record(folder, 4, 6)
    assert [event["step"] for event in read_events(folder.metrics)] == [1, 2, 3, 4, 5, 6]


def test_a_run_from_step_0_drops_all_events(folder: RunDir) -> None:
    record(folder, 0, 7)
    record(folder, 0, 1)
    assert [event["step"] for event in read_events(folder.metrics)] == [1]


def test_resuming_restores_the_validation_losses_up_to_the_checkpoint(folder: RunDir) -> None:
    recorder = open_recorder(folder)
    for step in (0, 5, 10):
        recorder.log_evaluation(step=step, val_loss=10.0 - step, val_accuracy=0.1)
    assert recorder.val_losses == {0: 10.0, 5: 5.0, 10: 0.0}
    recorder.close()
    assert open_recorder(folder, 5).val_losses == {0: 10.0, 5: 5.0}


def test_a_validation_loss_of_nan_is_never_the_best(folder: RunDir) -> None:
    recorder = open_recorder(folder)
    recorder.log_evaluation(step=0, val_loss=float("nan"), val_accuracy=0.1)
    recorder.log_evaluation(step=5, val_loss=5.0, val_accuracy=0.1)
    assert recorder.val_losses == {5: 5.0}
    recorder.close()
    assert open_recorder(folder, 5).val_losses == {5: 5.0}


def test_a_run_from_step_0_drops_all_validation_losses(folder: RunDir) -> None:
    recorder = open_recorder(folder)
    recorder.log_evaluation(step=0, val_loss=5.0, val_accuracy=0.1)
    recorder.close()
    assert open_recorder(folder).val_losses == {}
    assert read_events(folder.metrics) == []


def test_numbers_that_are_not_finite_are_written_as_null(folder: RunDir) -> None:
    recorder = open_recorder(folder)
    recorder.log_step(**training_event(1, loss=float("nan")))
    recorder.close()
    line = json.loads(folder.metrics.read_text(), parse_constant=pytest.fail)
    assert line["loss"] is None


def test_the_log_has_a_plain_line_per_event(folder: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    record(folder, 0, 1)
    open_recorder(folder, 1).log_evaluation(step=1, val_loss=1.5, val_accuracy=0.25)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "step 1/100  loss 2.0000  lr 1.00e-03  grad_norm 1.000  50 tokens/s",
        "step 1/100  validation loss 1.5000  accuracy 25.0%",
    ]


def test_a_stopwatch_does_not_count_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    watch = Stopwatch(10.0)
    clock.now += 3
    with watch.paused():
        clock.now += 50
    assert watch.read() == 13.0
    clock.now += 4
    assert watch.read() == 17.0
