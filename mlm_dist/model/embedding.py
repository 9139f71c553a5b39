"""Embeddings of tokens and positions on a GPU, in one kernel with the cast of their sum.

Shapes: B rows, T tokens per row, C channels, V entries.
"""

from typing import Any

import torch


class Embedding(torch.autograd.Function):
    """Looks up tokens, and returns the matrix (V, C) for the output layer, as `SharedRows` does."""

    @staticmethod
    def forward(
        ctx: Any, weight: torch.Tensor, tokens: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(V, C), tokens (B, T), embeddings of positions (T, C) -> (B, T, C) in bf16, (V, C)."""
        from mlm_dist.model import embedding_kernel  # noqa: PLC0415 (only where there is Triton)

        ctx.save_for_backward(tokens)
        return embedding_kernel.look_up(weight, tokens, positions), weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor, of_weight: torch.Tensor) -> tuple[torch.Tensor, None, torch.Tensor]:
        """Add in place, as `SharedRows` does."""
        from mlm_dist.model import embedding_kernel  # noqa: PLC0415 (only where there is Triton)

        (tokens,) = ctx.saved_tensors
        of_weight = of_weight.contiguous()  # the kernel finds rows by their number
        if torch.are_deterministic_algorithms_enabled():  # the kernel adds in any order
            of_weight.index_add_(0, tokens.flatten(), gradient.flatten(0, 1).to(of_weight.dtype))
        else:
            embedding_kernel.add_rows(of_weight, tokens, gradient.contiguous())
        return of_weight, None, gradient.sum(0, dtype=of_weight.dtype)
