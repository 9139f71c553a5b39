"""The sum of a residual stream and a branch, with its LayerNorm: in one kernel on a GPU, and so are their gradients.

Shapes: C channels.
"""

from typing import Any

import torch
from torch import nn

from mlm_dist.model import low_precision


def add_norm(x: torch.Tensor, branch: torch.Tensor | None, norm: nn.LayerNorm) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of two tensors (..., C), or the first one alone, and its LayerNorm."""
    if low_precision.runs_kernel("norm", x):
        both: tuple[torch.Tensor, torch.Tensor] = AddNorm.apply(x, branch, norm.weight, norm.bias, norm.eps)  # type: ignore[no-untyped-call]
        return both
    total = x if branch is None else x + branch
    return total, norm(total)


class AddNorm(torch.autograd.Function):
    """Sum and LayerNorm, of (..., C) and the parameters (C,) of the norm."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, branch: torch.Tensor | None, weight: torch.Tensor, bias: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the sum, and its LayerNorm."""
        from mlm_dist.model import norm_kernel  # noqa: PLC0415 (only where there is Triton)

        total, normed, statistics = norm_kernel.add_norm(x.contiguous(), branch, weight, bias, eps)
        ctx.save_for_backward(total, weight, statistics)
        ctx.has_branch = branch is not None
        return total, normed

    @staticmethod
    def backward(ctx: Any, of_total: torch.Tensor, of_normed: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradients of all arguments."""
        from mlm_dist.model import norm_kernel  # noqa: PLC0415 (only where there is Triton)

        gradients = of_total.contiguous(), of_normed.contiguous()
        of_x, of_parameters = norm_kernel.add_norm_backward(*gradients, *ctx.saved_tensors)
        return of_x, of_x if ctx.has_branch else None, *of_parameters, None
