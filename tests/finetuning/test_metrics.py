import warnings

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from mlm_dist.finetuning.metrics import RESAMPLES, estimate, measure, resamples, value_of

RNG = np.random.default_rng(5)


@pytest.mark.parametrize("classes", [2, 4])
def test_metrics_of_classes_are_those_of_scikit_learn_on_every_resample(classes: int) -> None:
    truth = RNG.integers(classes, size=40)
    predicted = [np.where(RNG.random(40) < 0.6, truth, RNG.integers(classes, size=40)), np.zeros(40, dtype=np.int64)]
    found = measure(truth, predicted, classes + 1)  # one of them does not occur
    for row, chosen in zip(range(50), resamples(40), strict=False):
        for seed, guess in enumerate(predicted):
            expected = {
                "accuracy": accuracy_score(truth[chosen], guess[chosen]),
                "macro-F1": f1_score(truth[chosen], guess[chosen], average="macro", zero_division=0),
                "Matthews": matthews_corrcoef(truth[chosen], guess[chosen]),
            }
            assert {name: samples[row, seed] for name, samples in found.items()} == pytest.approx(expected)
    assert {samples.shape for samples in found.values()} == {(1 + RESAMPLES, 2)}
    assert value_of(truth, predicted[0], classes) == found["accuracy"][0, 0]


def test_the_metric_of_scores_is_spearmans_correlation() -> None:
    truth, predicted = RNG.normal(size=30), RNG.normal(size=30)
    assert measure(truth, [predicted], 0)["Spearman"][0, 0] == pytest.approx(spearmanr(truth, predicted).statistic)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert value_of(truth, np.full(30, 2.0), 0) == 0  # undefined


def test_an_interval_covers_test_examples_and_seeds() -> None:
    count = 400
    truth = np.zeros(count, dtype=np.int64)
    guess = (RNG.random(count) < 0.3).astype(np.int64)
    one = estimate(measure(truth, [guess], 2)["accuracy"])
    assert one.standard_error == pytest.approx(np.sqrt(0.3 * 0.7 / count), rel=0.1)
    assert (one.low, one.high) == pytest.approx(
        (one.value - 2 * one.standard_error, one.value + 2 * one.standard_error), abs=0.01
    )
    # Seeds that differ by so much that the examples do not matter: the standard error of their mean.
    rates = np.array([0.1, 0.5, 0.9])
    several = estimate(np.tile(rates, (1 + RESAMPLES, 1)))
    assert several.value == pytest.approx(0.5)
    assert several.standard_error == pytest.approx(rates.std(ddof=1) / np.sqrt(3), rel=0.1)


def test_an_interval_over_few_seeds_has_the_true_mean_as_often_as_it_says() -> None:
    covered = 0
    for _ in range(200):
        found = estimate(np.tile(RNG.normal(size=3), (1 + RESAMPLES, 1)))
        covered += found.low <= 0 <= found.high
    assert covered >= 174  # without Student's t about 150


def test_the_difference_of_equal_predictions_has_no_error() -> None:
    truth, guess = RNG.integers(2, size=50), RNG.integers(2, size=50)
    one, other = (measure(truth, [guess], 2)["Matthews"] for _ in range(2))
    assert estimate(one - other) == (0, 0, 0, 0)
