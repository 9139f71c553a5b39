"""The feed-forward layer with ReLU on a GPU, with as few passes over its inner activation as possible.

The inner activation is the largest of a block. In the forward pass, the first matrix product adds the bias and applies
ReLU before it writes its result. In the backward pass, a Triton kernel computes the product that is the gradient after
ReLU. Before it writes this, it applies the derivative of ReLU and sums the gradient of the bias.

Shapes: N rows, C channels, W inner channels.
"""

from typing import Any

import torch


class ReluLayers(torch.autograd.Function):
    """Two linear layers with ReLU between them, as a function of rows (N, C) and the parameters of the layers."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: torch.Tensor,
        expand: torch.Tensor,
        expand_bias: torch.Tensor,
        contract: torch.Tensor,
        contract_bias: torch.Tensor,
    ) -> torch.Tensor:
        """(N, C) -> (N, C), with weights (W, C) and (C, W)."""
        inner = torch._addmm_activation(expand_bias, rows, expand.t())  # (N, W), after ReLU
        ctx.save_for_backward(rows, expand, inner, contract)
        return torch.addmm(contract_bias, inner, contract.t())

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The gradients of all arguments."""
        from mlm_dist.model import relu_kernel  # noqa: PLC0415 (only where there is Triton)

        rows, expand, inner, contract = ctx.saved_tensors
        inner_gradient, bias_gradient = relu_kernel.gradient_before_relu(gradient, contract, inner)
        contract_gradients = gradient.t() @ inner, gradient.sum(0)
        return inner_gradient @ expand, inner_gradient.t() @ rows, bias_gradient, *contract_gradients
