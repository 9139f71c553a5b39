"""Modules that compute in bf16 throughout, on a GPU.

Autocast casts each parameter in a kernel of its own, and keeps the residual stream, the LayerNorms and their gradients
in fp32. Here, one kernel casts all parameters of a module, and all its activations are in bf16. The parameters and
their gradients stay in fp32, and so do the sums inside LayerNorm, softmax and matrix products. Kernels sum the
gradients of biases and norm weights in fp32 over some 100 rows, and round these sums to bf16 before they are added, in
fp32 again. Partial sums in fp32 would need 12 more kernels in the recipe's step (2.02 instead of 1.99 ms, estimated).
"""

from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from mlm_dist.model import kernels
from mlm_dist.model.kernels import Kernel


class Cast(torch.autograd.Function):
    """Casts parameters in one kernel, and their gradients back in another."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *parameters: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Cast to `dtype`."""
        return cast(parameters, dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Cast to fp32."""
        return None, *cast(gradients, torch.float32)


def cast(tensors: tuple[torch.Tensor, ...], dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Copies of tensors with another dtype."""
    copies = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    torch._foreach_copy_(copies, tensors)
    return tuple(copies)


def call(module: nn.Module, x: torch.Tensor, *arguments: Any) -> torch.Tensor:
    """Call a module, in the dtype of `x` if that is low."""
    if x.dtype != torch.bfloat16:
        out: torch.Tensor = module(x, *arguments)
        return out
    names, parameters = zip(*module.named_parameters(), strict=True)
    low = Cast.apply(x.dtype, *parameters)  # type: ignore[no-untyped-call]
    with torch.autocast(x.device.type, enabled=False):
        result: torch.Tensor = functional_call(module, dict(zip(names, low, strict=True)), (x, *arguments))
    return result


def runs_kernel(kernel: Kernel, x: torch.Tensor) -> bool:
    """Whether a Triton kernel of the blocks is used: it is on, and the blocks compute in bf16.

    Args:
        kernel: which one.
        x: its input, whose dtype is that of the blocks; or the token embedding, in fp32.
    """
    return dtype_of_blocks(x) == torch.bfloat16 and kernels.is_on(kernel, x)


def dtype_of_blocks(x: torch.Tensor) -> torch.dtype:
    """The dtype of the residual stream that begins with `x`: on a GPU that of autocast if it is bf16, else its own.

    fp16 overflows more easily, and plain products on a CPU gain nothing.
    """
    kind = x.device.type
    is_low = x.is_cuda and torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.bfloat16
    return torch.bfloat16 if is_low else x.dtype
