import itertools
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import rankdata, spearmanr

import mlm_dist
from mlm_dist.inference.similarity import rank_correlation, ranks, spearman
from mlm_dist.texts.scored_pairs import ScoredPair


def test_equal_values_share_the_mean_of_their_ranks() -> None:
    values = np.array([3.0, 1.0, 3.0, 2.0, 3.0, 1.0])
    np.testing.assert_array_equal(ranks(values), rankdata(values))


def test_equal_values_on_either_side_have_no_correlation() -> None:
    equal, others = np.full(3, 2.0), np.arange(3.0)
    assert (spearman(equal, others), spearman(others, equal), spearman(others, others)) == (0, 0, 1)


def test_the_correlation_is_that_of_cosines_and_scores(run_dir: Path) -> None:
    model = mlm_dist.load(run_dir, "cpu")
    texts = ["The lamp went out.", "x", "Ned", "Nobody saw it.", "the harbour", "Aunt Zoë"]
    pairs = [ScoredPair(a, b, score) for a, b, score in zip(texts, texts[1:], [1, 1, 2, 0, 3], strict=False)]
    vectors = model.embed(texts)
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in itertools.pairwise(vectors)]
    expected = spearmanr(cosines, [pair.score for pair in pairs]).statistic
    assert rank_correlation(model, pairs) == pytest.approx(expected, abs=1e-12)
    assert 0 < abs(expected) < 1
