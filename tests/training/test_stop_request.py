import signal
import time
from pathlib import Path

import pytest

from mlm_dist.training.stopping import SIGNALS, StopFile, StopRequest

pytestmark = pytest.mark.usefixtures("kept_handlers")


def test_without_a_request_there_is_no_reason() -> None:
    assert StopRequest().reason() == ""


def test_the_last_signal_is_the_reason() -> None:
    request = StopRequest()
    for signum in SIGNALS:
        signal.raise_signal(signum)
        assert request.reason() == signum.name


def test_a_second_sigint_raises_keyboard_interrupt() -> None:
    request = StopRequest()
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert request.reason() == "SIGINT"


def test_other_signals_can_be_repeated() -> None:
    request = StopRequest()
    for _ in range(3):
        signal.raise_signal(signal.SIGTERM)
    assert request.reason() == "SIGTERM"


def test_the_time_limit_is_a_reason_after_its_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    request = StopRequest(minutes=2.0)
    for seconds, reason in [(0, ""), (110, ""), (130, "train.time_limit")]:
        monkeypatch.setattr(time, "monotonic", lambda seconds=seconds: now + seconds)
        assert request.reason() == reason


def test_a_stop_file_is_looked_up_ten_times_per_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 10.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    file = StopFile(tmp_path / "STOP")
    assert file.reason() == ""
    (tmp_path / "STOP").touch()
    now = 10.05
    assert file.reason() == ""
    now = 10.1
    assert file.reason() == str(tmp_path / "STOP")
    (tmp_path / "STOP").unlink()
    assert file.reason() == str(tmp_path / "STOP")  # the request remains
