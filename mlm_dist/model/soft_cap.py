"""Soft-capping of logits (Gemma 2, arXiv 2408.00118): none is larger than the cap."""

import torch


def soft_cap(logits: torch.Tensor, cap: float | None) -> torch.Tensor:
    """The logits l become cap * tanh(l / cap). Without a cap, they stay."""
    return logits if cap is None else cap * (logits / cap).tanh()


def soft_cap_(logits: torch.Tensor, cap: float) -> torch.Tensor:
    """Cap logits in place, and return the derivative: of the capped by the given ones."""
    tanh = logits.div_(cap).tanh_()
    slope = 1 - tanh.square()
    logits.mul_(cap)
    return slope
