"""The dial: a number, a course over the run, a stratified draw from a range."""

import numpy as np
import pytest

from mlm_dist.data.mask_rate import MaskRate
from mlm_dist.data.sampler import Selection
from tests.conftest import Rate, at_rate

MAX_ITERS = 11


def rates(mask_prob: Rate, step: int = 0, epoch: int = 0, size: int = 64, first: int = 0, seed: int = 1) -> np.ndarray:
    places = np.arange(size)
    return MaskRate(at_rate(mask_prob), seed, size, MAX_ITERS)(Selection(step, epoch, 10 * places + first, places))


def test_a_number_is_every_rows_rate_at_every_step() -> None:
    assert set(rates(0.15)) == set(rates(0.15, step=7, epoch=2)) == {0.15}


@pytest.mark.parametrize(("step", "expected"), [(0, 0.3), (5, 0.225), (10, 0.15), (99, 0.15)])
def test_a_course_goes_straight_from_the_first_step_to_the_last(step: int, expected: float) -> None:
    assert rates((0.3, 0.15), step) == pytest.approx(expected)


def test_a_course_may_rise_and_a_run_may_have_one_step() -> None:
    assert rates((0.1, 0.5), 10) == pytest.approx(0.5)
    one_step = MaskRate(at_rate((0.1, 0.5)), 1, 4, max_iters=1)
    assert one_step(Selection(0, 0, np.arange(4), np.arange(4))) == pytest.approx(0.1)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 100, 256])
def test_a_batch_draws_one_rate_from_each_of_as_many_equal_parts_of_the_range(size: int) -> None:
    for first in range(5):
        drawn = rates([0.0, 1.0], size=size, first=first)
        assert (drawn > 0).all() and (drawn <= 1).all()
        assert sorted(np.ceil(drawn * size)) == list(range(1, size + 1))


def test_draws_stay_in_the_range() -> None:
    drawn = np.concatenate([rates([0.1, 0.3], epoch=epoch) for epoch in range(100)])
    assert 0.1 < drawn.min() < 0.102
    assert 0.298 < drawn.max() <= 0.3


def test_within_its_part_a_rate_is_uniform() -> None:
    drawn = np.concatenate([rates([0.0, 1.0], epoch=epoch) * 64 % 1 for epoch in range(200)])
    counts, _ = np.histogram(drawn, bins=16, range=(0, 1))
    assert ((counts - 800) ** 2 / 800).sum() < 15 + 5 * np.sqrt(2 * 15)


def test_draws_are_a_function_of_seed_epoch_row_and_place() -> None:
    drawn = rates([0.0, 1.0])
    assert (rates([0.0, 1.0], step=9) == drawn).all()
    for other in (rates([0.0, 1.0], epoch=1), rates([0.0, 1.0], seed=2), rates([0.0, 1.0], first=1)):
        assert (other != drawn).mean() > 0.9
    rate, places = MaskRate(at_rate([0.0, 1.0]), 1, 64, MAX_ITERS), np.arange(64)
    share = rate(Selection(0, 0, 10 * places[3::4], places[3::4]))
    assert (share == drawn[3::4]).all()


@pytest.mark.parametrize(("world_size", "rows"), [(1, 16), (4, 16), (2, 32), (8, 8)])
def test_what_one_process_has_of_a_batch_is_spread_over_the_range_too(world_size: int, rows: int) -> None:
    drawn = rates([0.0, 1.0], size=256).reshape(-1, rows, world_size)
    sigma_of_free_draws = 0.29 / np.sqrt(rows)
    assert abs(drawn.mean(1) - 0.5).max() < 1.6 * sigma_of_free_draws  # the largest of many, where 3 would be usual


@pytest.mark.parametrize("mask_prob", [0.15, (0.1, 0.4), [0.0, 1.0], [0.2, 0.6]])
def test_no_rate_is_above_the_highest_of_its_place(mask_prob: Rate) -> None:
    highest = MaskRate(at_rate(mask_prob), 1, 64, MAX_ITERS).highest_by_index()
    for step in range(MAX_ITERS):
        drawn = rates(mask_prob, step, epoch=step)
        assert (drawn <= highest + 1e-12).all()
    assert (highest - drawn).min() < 0.31  # and is not far from it


@pytest.mark.parametrize(("mask_prob", "mean"), [(0.15, 0.15), ((0.3, 0.1), 0.2), ([0.0, 1.0], 0.5)])
def test_the_mean_is_over_the_run(mask_prob: Rate, mean: float) -> None:
    drawn = [rates(mask_prob, step, epoch=step).mean() for step in range(MAX_ITERS)]
    assert at_rate(mask_prob).mean_rate == pytest.approx(mean)
    assert np.mean(drawn) == pytest.approx(mean, abs=2e-3)
