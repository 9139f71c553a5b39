"""Probing a model with minimal pairs: how often it finds the acceptable sentence more likely."""

from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple

import numpy as np
import numpy.typing as npt
from annotated_types import Le
from pydantic import NonNegativeInt, PositiveInt

from mlm_dist.config import Fraction
from mlm_dist.inference.scoring import Score
from mlm_dist.texts.minimal_pairs import MinimalPair

# Two scores are equal if they differ by less, in nats per token: the rounding of a score depends on its batch.
TIE = 1e-5

LARGEST_STEP = 2**53  # that a plot can show

OUTCOMES = np.array([0.0, 0.5, 1.0])  # of a pair: wrong, tie, right
RESAMPLES = 10_000
INTERVAL = (0.025, 0.975)
SEED = 0

PairScores = tuple[Score, Score]
"""The scores of the acceptable sentence and of the other one."""


class Accuracy(NamedTuple):
    """The fraction of pairs whose acceptable sentence is more likely; ties count one half.

    Attributes:
        value: the fraction.
        low: the lower end of its 95 % interval, by bootstrap over the pairs.
        high: the upper end.
    """

    value: Fraction
    low: Fraction
    high: Fraction


class Group(NamedTuple):
    """The results on some pairs.

    Attributes:
        pairs: number of pairs.
        summed: the accuracy by the pseudo-log-likelihood of a sentence, the sum over its tokens.
        per_token: the accuracy by the mean over its tokens, which does not favour the shorter sentence.
    """

    pairs: PositiveInt
    summed: Accuracy
    per_token: Accuracy


class Probe(NamedTuple):
    """The results of a model.

    Attributes:
        step: of the model; None if it is unknown.
        overall: on all pairs.
        phenomena: by phenomenon.
        files: by file.
        long_sentences: number of sentences with more tokens than the model reads at once, which are scored in windows.
        within_word: as in `TrainedModel.score`.
    """

    step: Annotated[NonNegativeInt, Le(LARGEST_STEP)] | None
    overall: Group
    phenomena: dict[str, Group]
    files: dict[str, Group]
    long_sentences: NonNegativeInt
    within_word: bool


def score_pairs(score: Callable[[Sequence[str]], list[Score]], pairs: Sequence[MinimalPair]) -> list[PairScores]:
    """Score both sentences of each pair. They follow each other, so that they share what they have in common."""
    scores = score([sentence for pair in pairs for sentence in (pair.good, pair.bad)])
    return list(zip(scores[::2], scores[1::2], strict=True))


def compare(
    step: int | None,
    block_size: int,
    within_word: bool,
    pairs: Sequence[MinimalPair],
    scores: Sequence[PairScores],
) -> Probe:
    """Compute the accuracies of a model.

    Args:
        step: of the model.
        block_size: the largest number of tokens that it reads at once.
        within_word: how the sentences were scored.
        pairs: one or more pairs.
        scores: of the pairs.
    """
    sums, counts = np.moveaxis(np.array(scores, dtype=np.float64), 2, 0)  # (pairs, 2) each
    summed = outcomes(sums[:, 0] - sums[:, 1], TIE * counts.max(1))
    per_token = outcomes(sums[:, 0] / counts[:, 0] - sums[:, 1] / counts[:, 1], np.full(len(pairs), TIE))

    def group(chosen: npt.NDArray[np.bool_]) -> Group:
        return Group(int(chosen.sum()), accuracy(summed[chosen]), accuracy(per_token[chosen]))

    def groups(names: list[str]) -> dict[str, Group]:
        of_pairs = np.array(names)
        return {name: group(of_pairs == name) for name in sorted(set(names))}

    return Probe(
        step,
        group(np.ones(len(pairs), dtype=bool)),
        groups([pair.phenomenon for pair in pairs]),
        groups([pair.file for pair in pairs]),
        int((counts > block_size).sum()),
        within_word,
    )


def outcomes(margins: npt.NDArray[np.float64], tie: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Whether margins, (N,), are above zero: 1 or 0, and one half if they are not larger than `tie`, (N,)."""
    return np.where(abs(margins) <= tie, 0.5, margins > 0)


def accuracy(results: npt.NDArray[np.float64]) -> Accuracy:
    """The mean of outcomes, (N,), and its bootstrap interval, with the same random numbers in each call."""
    count = len(results)
    fractions = [(results == outcome).mean() for outcome in OUTCOMES]
    # How often each outcome is in a sample of N results, drawn with replacement, is multinomial.
    samples = np.random.default_rng(SEED).multinomial(count, fractions, size=RESAMPLES)  # (resamples, outcomes)
    low, high = np.quantile(samples @ OUTCOMES / count, INTERVAL)
    return Accuracy(float(results.mean()), float(low), float(high))
