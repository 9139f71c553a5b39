"""The mask rate: constant, scheduled over the run, or sampled from a range with stratification."""

import numpy as np
import pytest

from mlm_dist.config import MaskingConfig
from mlm_dist.data.mask_rate import MaskRate
from mlm_dist.data.sampler import Selection
from tests.conftest import Rate, at_rate

MAX_ITERS = 11


def rates(mask_prob: Rate, step: int = 0, epoch: int = 0, size: int = 64, first: int = 0, seed: int = 1) -> np.ndarray:
    indices = np.arange(size)
    return MaskRate(at_rate(mask_prob), seed, size, MAX_ITERS)(
        Selection.of_epoch(step, epoch, 10 * indices + first, indices)
    )


def test_a_constant_rate_is_the_rate_of_every_row_at_every_step() -> None:
    assert set(rates(0.15)) == set(rates(0.15, step=7, epoch=2)) == {0.15}


@pytest.mark.parametrize(("step", "expected"), [(0, 0.3), (5, 0.225), (10, 0.15), (99, 0.15)])
def test_a_schedule_is_linear_from_the_first_step_to_the_last(step: int, expected: float) -> None:
    assert rates((0.3, 0.15), step) == pytest.approx(expected)


@pytest.mark.parametrize(("step", "expected"), [(0, 0.3), (60, 0.3), (80, 0.225), (100, 0.15), (999, 0.15)])
def test_a_schedule_may_fall_only_at_the_end_of_the_run(step: int, expected: float) -> None:
    masking = MaskingConfig(mask_prob=0.3, mask_prob_end=0.15, mask_prob_change_fraction=0.4)
    rate = MaskRate(masking, 1, 4, max_iters=101)
    assert rate(Selection.of_epoch(step, 0, np.arange(4), np.arange(4))) == pytest.approx(expected)
    over_the_run = [rate(Selection.of_epoch(step, 0, np.arange(1), np.arange(1)))[0] for step in range(101)]
    assert masking.mean_rate == pytest.approx(np.mean(over_the_run), abs=1e-3)


def test_a_schedule_may_rise_and_a_run_may_have_one_step() -> None:
    assert rates((0.1, 0.5), 10) == pytest.approx(0.5)
    one_step = MaskRate(at_rate((0.1, 0.5)), 1, 4, max_iters=1)
    assert one_step(Selection.of_epoch(0, 0, np.arange(4), np.arange(4))) == pytest.approx(0.1)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 100, 256])
def test_each_row_of_a_batch_samples_its_rate_from_a_different_part_of_the_range(size: int) -> None:
    for first in range(5):
        sampled = rates([0.0, 1.0], size=size, first=first)
        assert (sampled > 0).all() and (sampled <= 1).all()
        assert sorted(np.ceil(sampled * size)) == list(range(1, size + 1))


def test_sampled_rates_stay_in_the_range() -> None:
    sampled = np.concatenate([rates([0.1, 0.3], epoch=epoch) for epoch in range(100)])
    assert 0.1 < sampled.min() < 0.102
    assert 0.298 < sampled.max() <= 0.3


def test_a_rate_is_uniform_within_its_part_of_the_range() -> None:
    sampled = np.concatenate([rates([0.0, 1.0], epoch=epoch) * 64 % 1 for epoch in range(200)])
    counts, _ = np.histogram(sampled, bins=16, range=(0, 1))
    assert ((counts - 800) ** 2 / 800).sum() < 15 + 5 * np.sqrt(2 * 15)


def test_sampled_rates_depend_only_on_seed_epoch_row_and_batch_index() -> None:
    sampled = rates([0.0, 1.0])
    assert (rates([0.0, 1.0], step=9) == sampled).all()
    for other in (rates([0.0, 1.0], epoch=1), rates([0.0, 1.0], seed=2), rates([0.0, 1.0], first=1)):
        assert (other != sampled).mean() > 0.9
    rate, indices = MaskRate(at_rate([0.0, 1.0]), 1, 64, MAX_ITERS), np.arange(3, 64, 4)  # those of rank 3 of 4
    assert (rate(Selection.of_epoch(0, 0, 10 * indices, indices)) == sampled[3::4]).all()


@pytest.mark.parametrize(("world_size", "rows"), [(1, 16), (4, 16), (2, 32), (8, 8)])
def test_the_rates_of_one_rank_are_spread_over_the_range_too(world_size: int, rows: int) -> None:
    sampled = rates([0.0, 1.0], size=256).reshape(-1, rows, world_size)
    sigma_of_independent_rates = 0.29 / np.sqrt(rows)
    # The largest of many deviations: with independent rates, 3 would be usual.
    assert abs(sampled.mean(1) - 0.5).max() < 1.6 * sigma_of_independent_rates


@pytest.mark.parametrize("mask_prob", [0.15, (0.1, 0.4), [0.0, 1.0], [0.2, 0.6]])
def test_no_rate_is_above_the_highest_of_its_batch_index(mask_prob: Rate) -> None:
    highest = MaskRate(at_rate(mask_prob), 1, 64, MAX_ITERS).highest_by_index()
    for step in range(MAX_ITERS):
        sampled = rates(mask_prob, step, epoch=step)
        assert (sampled <= highest + 1e-12).all()
    assert (highest - sampled).min() < 0.31  # and the bound is not loose


@pytest.mark.parametrize(("mask_prob", "mean"), [(0.15, 0.15), ((0.3, 0.1), 0.2), ([0.0, 1.0], 0.5)])
def test_mean_rate_is_the_mean_over_the_run(mask_prob: Rate, mean: float) -> None:
    sampled = [rates(mask_prob, step, epoch=step).mean() for step in range(MAX_ITERS)]
    assert at_rate(mask_prob).mean_rate == pytest.approx(mean)
    assert np.mean(sampled) == pytest.approx(mean, abs=2e-3)


def test_a_part_of_the_run_without_a_change_is_refused() -> None:
    with pytest.raises(ValueError, match=r"masking\.mask_prob_change_fraction needs masking\.mask_prob_end"):
        MaskingConfig(mask_prob_change_fraction=0.5)
