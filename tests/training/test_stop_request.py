import signal

import pytest

from mlm_dist.training.stopping import SIGNALS, StopRequest

pytestmark = pytest.mark.usefixtures("kept_handlers")


def test_nobody_asks_of_itself() -> None:
    assert StopRequest().reason() == ""


def test_the_last_signal_is_the_reason() -> None:
    request = StopRequest()
    for number in SIGNALS:
        signal.raise_signal(number)
        assert request.reason() == number.name


def test_a_second_interrupt_does_not_ask() -> None:
    request = StopRequest()
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert request.reason() == "SIGINT"


def test_other_signals_may_come_again_and_again() -> None:
    request = StopRequest()
    for _ in range(3):
        signal.raise_signal(signal.SIGTERM)
    assert request.reason() == "SIGTERM"


def test_the_clock_asks_after_its_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    now = time.monotonic()
    request = StopRequest(minutes=2.0)
    for seconds, reason in [(0, ""), (110, ""), (130, "train.time_limit")]:
        monkeypatch.setattr(time, "monotonic", lambda seconds=seconds: now + seconds)
        assert request.reason() == reason
