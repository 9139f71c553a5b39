"""What is between the two linear layers of a feed-forward layer: the functions that `model.activation` can name."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from mlm_dist.config import ModelConfig


class Widths(NamedTuple):
    """The widths inside a feed-forward layer: after its first linear layer, and before its second."""

    expanded: int
    contracted: int


def relu_squared(x: torch.Tensor) -> torch.Tensor:
    """The square of ReLU (So et al. 2021, arXiv 2109.08668)."""
    return x.relu_().square()


def geglu(x: torch.Tensor) -> torch.Tensor:
    """GELU of the first half, times the second half (Shazeer 2020, arXiv 2002.05202): (..., 2 W) -> (..., W)."""
    activated, gate = x.chunk(2, -1)
    return F.gelu(activated) * gate


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": torch.relu_,  # in place: the largest activation of a block
    "relu2": relu_squared,
    "gelu": F.gelu,
    "geglu": geglu,
}
"""They may overwrite their argument."""


def inner_widths(config: ModelConfig) -> Widths:
    """The widths inside a feed-forward layer: four times that of the model.

    GEGLU has three matrices instead of two. Its width is 8/3 of that of the model, rounded to a multiple of 8, so that
    the number of parameters is the same up to the rounding.
    """
    if config.activation == "geglu":
        width = 8 * max(1, (config.embedding_dim + 1) // 3)
        return Widths(2 * width, width)
    return Widths(4 * config.embedding_dim, 4 * config.embedding_dim)
