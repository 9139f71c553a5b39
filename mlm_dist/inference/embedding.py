"""Texts as vectors."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from mlm_dist.inference.predictor import Predictor


def embed(predictor: Predictor, texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """The mean, over a text's tokens, of the last hidden states, as `AutoModel` of transformers gives them.

    A text longer than the model's block is read block by block; one without any token has a vector of zeros.

    Returns:
        (texts, C), a row for each text.
    """
    sums = torch.zeros(len(texts), predictor.encoder.config.embedding_dim, dtype=torch.float64)
    counts = torch.zeros(len(texts), dtype=torch.float64)
    for numbers, tokens in predictor.in_batches(blocks(predictor, texts)):
        owners = torch.tensor(numbers)
        sums.index_add_(0, owners, predictor.states(tokens).double().sum(1).cpu())
        counts.index_add_(0, owners, torch.full((len(numbers),), tokens.shape[1], dtype=torch.float64))
    vectors: npt.NDArray[np.float32] = (sums / counts.clamp(min=1)[:, None]).float().numpy()
    return vectors


def blocks(predictor: Predictor, texts: Sequence[str]) -> Iterator[tuple[int, list[int]]]:
    """The texts' token ids, cut into blocks, each with the number of its text."""
    for number, text in enumerate(texts):
        ids = predictor.tokenizer.encode(text).tolist()
        for start in range(0, len(ids), predictor.block_size):
            yield number, ids[start : start + predictor.block_size]
