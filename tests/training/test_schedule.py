import itertools
import math
from pathlib import Path
from typing import Any, Literal, get_args

import pytest

from mlm_dist.config import OptimConfig
from mlm_dist.config_reading import read_config
from mlm_dist.training.schedule import fit_schedule, learning_rate, shortened_parts
from tests.conftest import REPOSITORY

Name = Literal["constant", "cosine", "linear", "wsd"]
NAMES: tuple[Name, ...] = get_args(Name)


def rates(**settings: Any) -> list[float]:
    config = OptimConfig(lr=1.0, **settings)
    return [learning_rate(step, 100, config) for step in range(100)]


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "wsd"])
def test_the_warmup_rises_linearly_to_the_peak(schedule: str) -> None:
    assert rates(schedule=schedule, warmup_iters=10)[:10] == pytest.approx([0.1 * step for step in range(1, 11)])


def test_constant_stays_at_the_peak() -> None:
    assert set(rates(schedule="constant", warmup_iters=0)) == {1.0}


def test_linear_decays_linearly_to_zero() -> None:
    decaying = rates(schedule="linear", warmup_iters=20)[20:]
    assert decaying == pytest.approx([left / 80 for left in range(80, 0, -1)])


def test_cosine_decays_along_half_a_cosine_to_zero() -> None:
    decaying = rates(schedule="cosine", warmup_iters=0)
    assert decaying[0] == 1.0
    assert decaying[50] == pytest.approx(0.5)
    assert decaying[25] == pytest.approx(0.5 + 0.5 * 0.5**0.5)
    assert decaying[99] < 0.001


def test_cosine_decays_after_the_warmup() -> None:
    decaying = rates(schedule="cosine", warmup_iters=20)[20:]
    assert decaying[0] == 1.0
    assert decaying[40] == pytest.approx(0.5)
    assert decaying[79] < 0.001


def test_wsd_is_constant_and_then_decays_linearly_to_zero() -> None:
    schedule_rates = rates(schedule="wsd", warmup_iters=0, decay_fraction=0.4)
    assert schedule_rates[:61] == [1.0] * 61
    assert schedule_rates[60:] == pytest.approx([left / 40 for left in range(40, 0, -1)])


def test_wsd_without_decay_is_constant() -> None:
    assert set(rates(schedule="wsd", warmup_iters=0, decay_fraction=0.0)) == {1.0}


def unfitted_rate(step: int, max_iters: int, config: OptimConfig) -> float:
    """The learning rate as the schedule defines it, without shortening its parts to fit the run."""
    if step < config.warmup_iters:
        return config.lr * (step + 1) / config.warmup_iters
    left = max_iters - step
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "wsd":
        return config.lr * min(1.0, left / max(1.0, config.decay_fraction * max_iters))
    fraction_left = left / max(1, max_iters - config.warmup_iters)
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 - math.cos(math.pi * fraction_left))
    return config.lr * fraction_left


LENGTHS = [1, 2, 3, 4, 5, 10, 33, 100, 101]
WARMUPS = [0, 1, 2, 3, 7, 33, 50, 51, 80, 100, 5000]
DECAYS = [0.0, 0.05, 0.4, 0.5, 0.7, 0.8, 1.0]


def all_runs(name: Name) -> list[tuple[int, OptimConfig]]:
    """Every combination of run length, warmup and decay."""
    return [
        (max_iters, OptimConfig(lr=3e-3, schedule=name, warmup_iters=warmup_iters, decay_fraction=decay_fraction))
        for max_iters, warmup_iters, decay_fraction in itertools.product(LENGTHS, WARMUPS, DECAYS)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_every_run_reaches_the_peak_and_has_only_rates_above_0(name: Name) -> None:
    for max_iters, config in all_runs(name):
        schedule_rates = [learning_rate(step, max_iters, config) for step in range(max_iters)]
        assert max(schedule_rates) == pytest.approx(config.lr, rel=1e-12), (max_iters, config)
        assert min(schedule_rates) > 0, (max_iters, config)


@pytest.mark.parametrize("name", NAMES)
def test_the_rate_rises_only_during_the_warmup_and_never_falls_faster_than_the_decay(
    name: Name,
) -> None:
    steepest = math.pi / 2 if name == "cosine" else 1.0
    for max_iters, config in all_runs(name):
        warmup_iters, decay_iters = fit_schedule(max_iters, config)
        schedule_rates = [learning_rate(step, max_iters, config) / config.lr for step in range(max_iters)]
        changes = [after - before for before, after in itertools.pairwise(schedule_rates)]
        rising, decaying = changes[: max(0, warmup_iters - 1)], changes[max(0, warmup_iters - 1) :]
        assert rising == pytest.approx([1 / max(1, warmup_iters)] * len(rising)), (max_iters, config)
        assert all(-steepest / max(1.0, decay_iters) - 1e-12 <= change <= 1e-12 for change in decaying), (
            max_iters,
            config,
        )


@pytest.mark.parametrize("name", NAMES)
def test_a_schedule_that_fits_the_run_equals_the_definition_bit_for_bit(name: Name) -> None:
    fits = [(max_iters, config) for max_iters, config in all_runs(name) if not shortened_parts(max_iters, config)]
    assert 50 < len(fits) < len(all_runs(name))
    for max_iters, config in fits:
        for step in range(max_iters):
            assert learning_rate(step, max_iters, config) == unfitted_rate(step, max_iters, config), (max_iters, config)


@pytest.mark.parametrize("file", sorted((REPOSITORY / "configs").glob("*.yaml")), ids=lambda file: file.name)
def test_the_schedules_of_the_configs_equal_the_definition_bit_for_bit(file: Path) -> None:
    config = read_config(file)
    max_iters, optim = config.train.max_iters, config.optim
    assert shortened_parts(max_iters, optim) == []
    assert all(learning_rate(s, max_iters, optim) == unfitted_rate(s, max_iters, optim) for s in range(max_iters))


@pytest.mark.parametrize(
    ("max_iters", "settings", "lines"),
    [
        (
            100,
            {},
            ["optim.warmup_iters 100 is more than half of train.max_iters 100: the warmup takes 50 steps"],
        ),
        (
            100,
            {"warmup_iters": 80, "decay_fraction": 0.8},
            [
                "optim.warmup_iters 80 is more than half of train.max_iters 100: the warmup takes 50 steps",
                "optim.decay_fraction 0.8 of train.max_iters 100 is more than the warmup leaves: the decay takes "
                "50 steps",
            ],
        ),
        (
            100,
            {"warmup_iters": 30, "decay_fraction": 0.8},
            [
                "optim.decay_fraction 0.8 of train.max_iters 100 is more than the warmup leaves: the decay takes "
                "70 steps"
            ],
        ),
        (3, {}, ["optim.warmup_iters 100 is more than half of train.max_iters 3: the warmup takes 1 step"]),
        (1, {}, ["optim.warmup_iters 100 is more than half of train.max_iters 1: the warmup takes 0 steps"]),
        (100, {"warmup_iters": 30, "decay_fraction": 0.8, "schedule": "cosine"}, []),
        (100, {"warmup_iters": 50, "decay_fraction": 0.5}, []),
        (100, {"warmup_iters": 45, "decay_fraction": 0.55}, []),  # 0.55 * 100 is slightly above 55 in floating point
        (1, {"warmup_iters": 0, "decay_fraction": 1.0}, []),
    ],
)
def test_every_shortened_part_is_reported_in_a_line(max_iters: int, settings: dict[str, Any], lines: list[str]) -> None:
    assert shortened_parts(max_iters, OptimConfig(**settings)) == lines


def test_a_run_of_one_step_has_the_peak_rate() -> None:
    for name in NAMES:
        assert learning_rate(0, 1, OptimConfig(lr=0.5, schedule=name)) == 0.5
