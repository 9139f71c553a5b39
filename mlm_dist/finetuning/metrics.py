"""The metrics of predictions, with intervals by bootstrap over the test examples and the seeds."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from mlm_dist.finetuning.examples import Targets
from mlm_dist.inference.similarity import spearman
from mlm_dist.inference.task_report import Estimate

RESAMPLES = 1000
INTERVAL = (0.025, 0.975)
SEED = 0

Samples = npt.NDArray[np.float64]
"""(1 + RESAMPLES, seeds): a metric of the predictions of each seed on the test examples, then on resamples of them."""


def measure(truth: Targets, predicted: Sequence[Targets], classes: int) -> dict[str, Samples]:
    """The metrics by name. All calls with as many examples resample the same ones, so that differences are paired.

    Args:
        truth: the targets, (N,).
        predicted: those that were predicted with each seed.
        classes: number of classes; 0: they are scores.
    """
    if classes:
        codes = np.array(predicted) + classes * truth  # (seeds, N)
        found = [class_metrics(confusions(codes[:, chosen], classes)) for chosen in resamples(len(truth))]
    else:
        found = [
            {"Spearman": np.array([spearman(truth[chosen], scores[chosen]) for scores in predicted])}
            for chosen in resamples(len(truth))
        ]
    return {name: np.array([metrics[name] for metrics in found]) for name in found[0]}


def value_of(truth: Targets, predicted: Targets, classes: int) -> float:
    """The main metric alone, without resamples."""
    return float((truth == predicted).mean()) if classes else spearman(truth, predicted)


def resamples(count: int) -> Iterator[npt.NDArray[np.int64]]:
    """The indices of all examples, then of `RESAMPLES` samples of as many, drawn with replacement."""
    rng = np.random.default_rng(SEED)
    yield np.arange(count)
    for _ in range(RESAMPLES):
        yield rng.integers(count, size=count)


def confusions(codes: npt.NDArray[np.int64], classes: int) -> npt.NDArray[np.float64]:
    """The confusion matrix of each seed, (seeds, classes, classes), of codes `classes * truth + prediction`."""
    counts = [np.bincount(row, minlength=classes**2) for row in codes]
    return np.array(counts, dtype=np.float64).reshape(-1, classes, classes)


def class_metrics(matrices: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
    """Accuracy, macro-F1 and Matthews' correlation of confusion matrices, (..., classes, classes).

    As scikit-learn computes them, but of many matrices at once: a call of it for each resample would take minutes.
    """
    hits = matrices.diagonal(axis1=-2, axis2=-1)  # (..., classes)
    true, predicted = matrices.sum(-1), matrices.sum(-2)
    right, total = hits.sum(-1), true.sum(-1)
    occurs = true + predicted > 0
    f1 = np.where(occurs, 2 * hits / np.maximum(true + predicted, 1), 0).sum(-1) / occurs.sum(-1)
    spread = (total**2 - (true**2).sum(-1)) * (total**2 - (predicted**2).sum(-1))
    agreement = right * total - (true * predicted).sum(-1)
    matthews = np.where(spread > 0, agreement / np.sqrt(np.maximum(spread, 1)), 0)
    return {"accuracy": right / total, "macro-F1": f1, "Matthews": matthews}


def estimate(samples: Samples) -> Estimate:
    """The mean over the seeds, and its interval: with each resample of the examples, the seeds are resampled too.

    Of S seeds, S - 1 are drawn: the variance of their mean is then that of S seeds, which S draws would underestimate.
    Few seeds tell their variance badly, so the interval is widened to that of Student's t, with the degrees of freedom
    by Satterthwaite.
    """
    from scipy.stats import norm, t  # noqa: PLC0415 (an extra)

    seeds = samples.shape[1]
    draws = max(1, seeds - 1)
    weights = np.random.default_rng(SEED).multinomial(draws, [1 / seeds] * seeds, size=RESAMPLES) / draws
    means = (samples[1:] * weights).sum(1)
    value, error = float(samples[0].mean()), float(means.std())
    of_seeds = samples[0].var(ddof=1) / seeds if seeds > 1 else 0.0
    freedom = (seeds - 1) * max(error**2 / of_seeds, 1.0) ** 2 if of_seeds > 0 else np.inf
    widening = t.ppf(INTERVAL[1], freedom) / norm.ppf(INTERVAL[1])
    low, high = value + widening * (np.quantile(means, INTERVAL) - value)
    return Estimate(value, float(low), float(high), error)
