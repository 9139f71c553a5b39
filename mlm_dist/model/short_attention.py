"""Attention of short rows on a GPU, from the packed output of the linear layer of queries, keys and values.

A program computes a head of a row at once. Gradients are written into one tensor again, without copies.

Shapes: B rows, T tokens per row, K queries per row, C channels, H heads of D channels.
"""

from typing import Any

import torch

from mlm_dist.model import low_precision

LONGEST = 64  # tokens; all products of a head and row fit the registers of a program
HEAD_SIZES = 16, 32, 64  # powers of two


def uses_short_attention(packed: torch.Tensor, head_size: int) -> bool:
    """Whether `ShortAttention` computes the attention of packed rows (B, T, n C)."""
    return fits(packed.shape[1], head_size) and low_precision.runs_kernel("attention", packed)


def fits(length: int, head_size: int) -> bool:
    """Whether a program can compute a head of rows of `length` tokens."""
    return length <= LONGEST and head_size in HEAD_SIZES


class ShortAttention(torch.autograd.Function):
    """Attention of all positions, or of the given queries alone, to all positions."""

    @staticmethod
    def forward(ctx: Any, packed: torch.Tensor, query: torch.Tensor | None, heads: int) -> torch.Tensor:
        """Queries, keys and values (B, T, 3 C) -> (B, T, C); with `query` (B, K, C), (B, T, 2 C) -> (B, K, C)."""
        from mlm_dist.model import attention_kernel  # noqa: PLC0415 (only where there is Triton)

        ctx.save_for_backward(packed, query)
        ctx.heads = heads
        return attention_kernel.attend(*parts(packed, query), heads)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradients, in the layout of the arguments."""
        from mlm_dist.model import attention_kernel  # noqa: PLC0415 (only where there is Triton)

        packed, query = ctx.saved_tensors
        of_packed = torch.empty_like(packed)
        of_query = None if query is None else torch.empty_like(query)
        attention_kernel.attend_backward(
            gradient.contiguous(), *parts(packed, query), *parts(of_packed, of_query), ctx.heads
        )
        return of_packed, of_query, None


def parts(packed: torch.Tensor, query: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values as views of packed ones, or of the given queries and the packed rest."""
    first, second, third = packed.chunk(3, -1) if query is None else (query, *packed.chunk(2, -1))
    return first, second, third
