"""How often tokens occur, and the loss weights that follow from it."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from mlm_dist.config import Config
from mlm_dist.data.shards import StoredTokens
from mlm_dist.data.word_count import BLOCK, block_starts
from mlm_dist.errors import UserError


def weights_by_frequency(
    config: Config, corpora: Sequence[StoredTokens], dtype: torch.dtype, device: torch.device
) -> torch.Tensor | None:
    """The loss weight of each token by `train.loss_frequency_exponent`, (V,) float32; None if all are 1.

    Raises:
        UserError: the dtype of matrix products cannot hold the products with the weights of rare tokens.
    """
    exponent = config.train.loss_frequency_exponent
    if not exponent:
        return None
    if dtype == torch.float16:
        raise UserError("train.loss_frequency_exponent needs another precision than fp16: the weights are too large")
    frequencies = token_frequencies(corpora, config.data.weights, config.model.entries)
    return scaled_weights(frequencies, exponent).to(device)


def token_frequencies(
    corpora: Sequence[StoredTokens], weights: Sequence[float], entries: int
) -> npt.NDArray[np.float64]:
    """The relative frequency of each token in the training text, (V,); in a mixture, the mean by the corpora's weights.

    Of a long text, evenly spaced blocks are counted.
    """
    frequencies = np.zeros(entries)
    for tokens, weight in zip(corpora, weights, strict=True):
        counts = np.zeros(entries, dtype=np.int64)
        for start in block_starts(len(tokens)):
            counts += np.bincount(np.array(tokens[start : start + BLOCK]), minlength=entries)
        frequencies += weight / sum(weights) * counts / counts.sum()
    return frequencies


def scaled_weights(frequencies: npt.NDArray[np.float64], exponent: float) -> torch.Tensor:
    """The frequency of each token to the power of minus `exponent`, (V,) float32, scaled to a mean of 1 over the text.

    Tokens that never occur have the weight of the rarest one that does.
    """
    at_least = np.maximum(frequencies, frequencies[frequencies > 0].min())
    weights = at_least**-exponent
    return torch.from_numpy((weights / (frequencies @ weights)).astype(np.float32))
