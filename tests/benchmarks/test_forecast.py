"""What a run will take, from a few of its steps."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlm_dist.benchmarks import forecast as module
from mlm_dist.benchmarks.forecast import Sample, fitting_rows, forecast, total_seconds
from mlm_dist.config import Config, ModelConfig, TrainConfig
from mlm_dist.errors import UserError
from tests.conftest import start, tiny_flags, verb

SAMPLE = Sample(
    {
        "parameters": 10,
        "checkpoint_bytes": 120,
        "parameter_bytes": 40,
        "milestones": [10, 5000, 9000],
        "rows_per_epoch": 1000,
    },
    peak_memory=10**9,
    start=4.0,
    step=0.5,
    evaluation=3.0,
    checkpoint=0.25,
)
# Trains, and then prints the peak memory of the process as the system has counted it.
TRAIN = """
import re, sys
from pathlib import Path
from mlm_dist.train import main
main(sys.argv[1:])
print(re.search(r"VmHWM:.*", Path("/proc/self/status").read_text())[0])
"""


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.long
def test_a_plan_has_the_peak_memory_of_the_run_and_writes_nothing(
    corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROUNDS", 1)
    monkeypatch.setattr(module, "MOST_STEPS", 3)
    # Activations that are larger than the program itself.
    large = {"train__batch_size": 256, "model__block_size": 64, "model__embedding_dim": 64, "train__max_iters": 12}
    flags = tiny_flags(corpus_folder, tmp_path / "run", **large)
    result = verb("plan", *flags, "--json")
    assert result.returncode == 0, result.stderr
    assert not list(tmp_path.iterdir())
    plan = json.loads(result.stdout)
    assert plan["tokens"] == 12 * 256 * 64
    assert plan["epochs"] == pytest.approx(12 * 256 / plan["rows_per_epoch"])
    assert plan["rows_at_a_time"] == 256 < plan["most_rows"]
    assert plan["fitting_micro_batch_size"] is None
    assert 0 < plan["step"] < plan["total"]
    trained = start([sys.executable, "-c", TRAIN, *flags])
    assert trained.returncode == 0, trained.stderr
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", trained.stdout)
    assert plan["peak_memory"] == pytest.approx(1024 * int(peak), rel=0.1)
    (checkpoint, *_) = (tmp_path / "run/checkpoints").iterdir()
    size = sum(file.stat().st_size for file in checkpoint.iterdir())
    assert plan["disk"] == pytest.approx((plan["checkpoints"] + 1 / 3) * size, rel=0.1)


def linear(base: int, per_row: int) -> Callable[[Config, int, int], int]:
    """A machine on which a step takes memory in proportion to its rows."""
    return lambda _config, rows, _processes: base + rows * per_row


@pytest.mark.parametrize(
    ("batch_size", "processes", "micro_batch_size", "peak", "most"),
    [(64, 1, None, 10**9, 90), (96, 1, 48, 196 * 10**7, 90), (96, 2, None, 10**9, 90), (202, 2, 1, 201 * 10**7, 90)],
)
def test_a_micro_batch_that_fits_is_suggested(
    batch_size: int,
    processes: int,
    micro_batch_size: int | None,
    peak: int,
    most: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Stand-ins for the measurements, since the machine of the test has a memory of its own.
    taken: list[Config] = []

    def take_sample(config: Config, _: int) -> Sample:
        taken.append(config)
        return SAMPLE

    monkeypatch.setattr(module, "peak_of_step", linear(10**9, 10**7))
    monkeypatch.setattr(module, "usable_memory", lambda *_: 19 * 10**8)
    monkeypatch.setattr(module, "take_sample", take_sample)
    config = Config(model=ModelConfig(vocab_size=300), train=TrainConfig(batch_size=batch_size), device="cpu")
    plan = forecast(config, processes, lambda _: None)
    assert (plan.most_rows, plan.fitting_micro_batch_size, plan.peak_memory) == (most, micro_batch_size, peak)
    assert taken[0].train.micro_batch_size == micro_batch_size
    assert plan.milestones == 2  # of three, which the run of 5000 steps reaches
    assert plan.disk == plan.checkpoints * 120 + 2 * 40 + 40


def test_earlier_phases_read_fewer_tokens_in_less_time(monkeypatch: pytest.MonkeyPatch) -> None:
    # Stand-ins for the measurements, as above.
    monkeypatch.setattr(module, "peak_of_step", linear(10**8, 10**6))
    monkeypatch.setattr(module, "take_sample", lambda *_: SAMPLE)
    train = TrainConfig(
        batch_size=64, max_iters=30, eval_interval=0, phases=[{"steps": 20, "batch_size": 16, "row_length": 32}]
    )
    plan = forecast(Config(model=ModelConfig(vocab_size=300), train=train, device="cpu"), 1, lambda _: None)
    assert plan.tokens == (20 * 16 + 10 * 64) * 64
    assert plan.epochs == (20 * 16 + 10 * 64) / 1000
    assert plan.total == 4.0 + 0.5 * (20 / 4 + 10) + 0.25


def test_a_row_that_does_not_fit_is_refused() -> None:
    assert [fitting_rows(96, most) for most in (1, 5, 50, 96, 200)] == [1, 4, 48, 96, 96]
    with pytest.raises(UserError, match="not even a single row"):
        fitting_rows(96, 0)


@pytest.mark.parametrize(
    ("values", "evaluations", "checkpoints"),
    [
        ({"max_iters": 100, "eval_interval": 25}, 5, 1),
        ({"max_iters": 110, "eval_interval": 25}, 6, 1),
        ({"max_iters": 1100, "eval_interval": 0}, 0, 3),
    ],
)
def test_the_time_of_a_run_is_that_of_its_parts(values: dict[str, Any], evaluations: int, checkpoints: int) -> None:
    config = Config(train=TrainConfig(**values))
    expected = 4.0 + 0.5 * values["max_iters"] + 3.0 * evaluations + 0.25 * checkpoints
    assert total_seconds(config, SAMPLE) == expected
