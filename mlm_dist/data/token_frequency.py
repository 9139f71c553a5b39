"""How often the tokens of a vocabulary occur, and the loss weights that follow from it."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from mlm_dist.data.shards import StoredTokens

BLOCK = 1 << 24  # tokens


def token_frequencies(
    corpora: Sequence[StoredTokens], weights: Sequence[float], entries: int
) -> npt.NDArray[np.float64]:
    """The fraction of the training tokens that each entry of the vocabulary is, (entries,): of a mixture, by weight."""
    frequencies = np.zeros(entries)
    for tokens, weight in zip(corpora, weights, strict=True):
        counts = np.zeros(entries, dtype=np.int64)
        for start in range(0, len(tokens), BLOCK):
            counts += np.bincount(np.array(tokens[start : start + BLOCK]), minlength=entries)
        frequencies += weight / sum(weights) * counts / len(tokens)
    return frequencies


def weights_by_frequency(frequencies: npt.NDArray[np.float64], exponent: float) -> torch.Tensor:
    """The loss weight of each token, (V,) float32: its frequency to the power of minus `exponent`.

    The weights are scaled so that their mean over the training tokens is 1. Tokens that never occur have the weight of
    the rarest one that does.
    """
    at_least = np.maximum(frequencies, frequencies[frequencies > 0].min())
    weights = at_least**-exponent
    return torch.from_numpy((weights / (frequencies @ weights)).astype(np.float32))
