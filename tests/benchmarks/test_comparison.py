"""Means with intervals, Welch's test, and the table of a comparison."""

import math

import numpy as np
import pytest

from mlm_dist.benchmarks.comparison import compare, comparison_table, estimate
from mlm_dist.benchmarks.to_loss import Cost


def test_an_interval_is_that_of_students_t() -> None:
    mean, half_width = estimate([10.0, 12.0, 14.0])
    assert mean == 12.0
    assert half_width == pytest.approx(4.302653 * 2 / math.sqrt(3), rel=1e-6)  # the 97.5th percentile with 2 degrees


def test_a_single_value_has_no_interval() -> None:
    assert estimate([3.0]).mean == 3.0
    assert math.isnan(estimate([3.0]).half_width)


def test_the_p_value_is_that_of_welchs_one_sided_test() -> None:
    t, degrees = -8 / math.sqrt(20 / 3), (20 / 3) ** 2 / ((4 / 3) ** 2 / 2 + (16 / 3) ** 2 / 2)
    x = np.linspace(-400, t, 4_000_000)
    scale = math.gamma((degrees + 1) / 2) / math.sqrt(degrees * math.pi) / math.gamma(degrees / 2)
    below = (scale * (1 + x**2 / degrees) ** (-(degrees + 1) / 2)).mean() * (t + 400)
    less = compare([10.0, 12.0, 14.0], [16.0, 20.0, 24.0])
    assert less.ratio == pytest.approx(0.6)
    assert less.p == pytest.approx(below, rel=1e-3)
    assert compare([16.0, 20.0, 24.0], [10.0, 12.0, 14.0]).p == pytest.approx(1 - less.p)


@pytest.mark.parametrize(("values", "first"), [([1.0], [2.0, 3.0]), ([1.0, 2.0], [3.0]), ([1.0, 1.0], [2.0, 3.0])])
def test_without_a_spread_there_is_no_p_value(values: list[float], first: list[float]) -> None:
    assert math.isnan(compare(values, first).p)


def test_a_contender_with_a_run_that_did_not_reach_the_target_is_not_compared() -> None:
    slow: list[Cost | None] = [Cost(100, 4e6, 50.0, 2e9), Cost(120, 5e6, 60.0, 2e9)]
    fast: list[Cost | None] = [Cost(50, 2e6, 30.0, 1e9), None]
    table = comparison_table({"slow": slow, "fast": fast, "lost": [None, None]})
    _, _, first, second, third = table.splitlines()
    assert first == "| slow | 2 of 2 | 110 ± 127 | 4.50 ± 6.35 M | 55 ± 64 s | 2.00 ± 0.00 GB | - | - | - |"
    assert second == "| fast | 1 of 2 | 50 | 2.00 M | 30 s | 1.00 GB | - | - | - |"
    assert third == "| lost | 0 of 2 | - | - | - | - | - | - | - |"


def test_the_table_compares_tokens_time_and_memory_with_those_of_the_first() -> None:
    slow: list[Cost | None] = [Cost(100, 4e6, 50.0, 0), Cost(120, 5e6, 60.0, 0)]
    fast: list[Cost | None] = [Cost(50, 2e6, 30.0, 0), Cost(50, 2e6, 36.0, 0)]
    *_, last = comparison_table({"slow": slow, "fast": fast}).splitlines()
    p = compare([30.0, 36.0], [50.0, 60.0]).p
    assert last.endswith(f" | - | 0.44 | 0.60 (p {p:.2g}) | - |")  # the memory is not known, and tokens do not vary
