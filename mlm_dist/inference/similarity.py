"""How well the vectors of texts agree with people about their similarity."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mlm_dist.inference.model import TrainedModel
from mlm_dist.texts.scored_pairs import ScoredPair


def rank_correlation(model: TrainedModel, pairs: Sequence[ScoredPair]) -> float:
    """Spearman's correlation of the cosines of the vectors of `embed` with the scores of pairs."""
    first = model.embed([pair.first for pair in pairs], normalize=True)
    second = model.embed([pair.second for pair in pairs], normalize=True)
    cosines = (first * second).sum(1)
    return spearman(cosines, np.array([pair.score for pair in pairs]))


def spearman(values: npt.NDArray[np.floating], others: npt.NDArray[np.floating]) -> float:
    """Spearman's rank correlation, from -1 to 1; 0 if all values of one side are equal."""
    if values.min() == values.max() or others.min() == others.max():
        return 0.0
    return float(np.corrcoef(ranks(values), ranks(others))[0, 1])


def ranks(values: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """The rank of each value, from 1. Equal values have the mean of their ranks."""
    _, groups, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[groups], dtype=np.float64)
