"""Fitting the parameters of a trained encoder to a longer block."""

import torch


def fit_positions(embedding: torch.Tensor, block_size: int) -> torch.Tensor:
    """Fit position embeddings to another block size: (T, C) -> (block_size, C).

    A shorter block has the first positions.
    """
    length = len(embedding)
    if block_size <= length:
        return embedding[:block_size].clone()
    return embedding[torch.arange(block_size) % length]
