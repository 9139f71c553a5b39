"""Embedding texts as vectors."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from mlm_dist.inference.predictor import Predictor


def embed(predictor: Predictor, texts: Sequence[str], layer: int | None = None) -> npt.NDArray[np.float32]:
    """Average the hidden states of a layer, by default the last, over the tokens of each text.

    Those of the last are the states that transformers' `AutoModel` returns for the exported model. A text longer than
    the model's block size is read block by block. A text without tokens has a vector of zeros.

    Args:
        predictor: the model.
        texts: texts of any length.
        layer: number of blocks that compute the states.

    Returns:
        (texts, C), one row per text.

    Raises:
        UserError: a text contains a lone surrogate.
    """
    sums = torch.zeros(len(texts), predictor.encoder.config.embedding_dim, dtype=torch.float64)
    counts = torch.zeros(len(texts), dtype=torch.float64)
    for indices, tokens in predictor.in_batches(blocks(predictor, texts)):
        rows = torch.tensor(indices)
        sums.index_add_(0, rows, predictor.states(tokens, layer).double().sum(1).cpu())
        counts.index_add_(0, rows, torch.full((len(indices),), tokens.shape[1], dtype=torch.float64))
    vectors: npt.NDArray[np.float32] = (sums / counts.clamp(min=1)[:, None]).float().numpy()
    return vectors


def blocks(predictor: Predictor, texts: Sequence[str]) -> Iterator[tuple[int, list[int]]]:
    """Split the token ids of texts into blocks. Yields each block with the index of its text."""
    for i, text in enumerate(texts):
        ids = predictor.tokenizer.encode(text).tolist()
        for start in range(0, len(ids), predictor.block_size):
            yield i, ids[start : start + predictor.block_size]
