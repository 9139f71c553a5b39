"""Rotary position embeddings (Su et al. 2021, arXiv 2104.09864): queries and keys are rotated by their positions.

The attention then depends on the distance of two tokens alone. So a document in the middle of a row is computed as if
it were at the start.
"""

import torch

# Of the angles: the slowest pair of channels turns by nearly 1 / BASE per position.
BASE = 10000.0

Rotation = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines of the angles: (T, D / 2) each, or (B, K, D / 2), for heads of D channels."""


def rotation(length: int, head_size: int, like: torch.Tensor) -> Rotation:
    """The rotation of the positions of a row, with the device and dtype of `like`."""
    exponents = torch.arange(0, head_size, 2, dtype=torch.float64, device=like.device) / head_size
    angles = torch.arange(length, device=like.device)[:, None] * BASE**-exponents  # (T, D / 2)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def select(rotation: Rotation, positions: torch.Tensor) -> Rotation:
    """The rotation of some positions of each row, (B, K)."""
    cosines, sines = rotation
    return cosines[positions], sines[positions]


def rotate(x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Rotate queries or keys, (B, H, T, D) or (B, T, D). Channel i is paired with i + D / 2, as in transformers."""
    cosines, sines = (part.unsqueeze(-3) for part in rotation)  # the same for all heads
    first, second = x.chunk(2, -1)
    return torch.cat([first * cosines - second * sines, second * cosines + first * sines], -1).to(x.dtype)
