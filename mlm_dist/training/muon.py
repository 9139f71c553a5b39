"""Muon (Jordan et al. 2024), and NorMuon, which divides each row of an update by its running size."""

import math
from typing import Any

import torch
from torch import nn
from torch.optim._muon import _zeropower_via_newtonschulz

MOMENTUM = 0.95
SECOND_MOMENT = 0.95  # decay of the mean square of a row

# Those of torch.optim.Muon.
COEFFICIENTS, ITERATIONS = (3.4445, -4.7750, 2.0315), 5
EPS = 1e-7

UPDATE_RMS = 0.2  # root mean square of an update at rate 1, as of AdamW


class Muon(torch.optim.Optimizer):
    """Orthogonalizes the momentum of each matrix, so that directions with small gradients are learned too.

    Updates of any shape have the same size as AdamW's at the same rate (Liu et al. 2025, arXiv 2502.16982), as with
    `match_rms_adamw` of `torch.optim.Muon`. That one reads the learning rate on the host and cannot skip a step.

    Attributes: scalars on the device, as the fused AdamW takes them; None if the host clips and skips.
        grad_scale: the gradient is divided by it.
        found_inf: 1 to leave matrices and state as they are, otherwise 0.
    """

    grad_scale: torch.Tensor | None = None
    found_inf: torch.Tensor | None = None

    def __init__(self, matrices: list[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the matrices that have a gradient."""
        taken = True if self.found_inf is None else self.found_inf == 0
        for group in self.param_groups:
            lr = taken * group["lr"]
            for matrix in group["params"]:
                if matrix.grad is not None:
                    matrix.mul_(1 - lr * group["weight_decay"])
                    self.move(matrix, lr, taken)

    def move(self, matrix: torch.Tensor, lr: float | torch.Tensor, taken: bool | torch.Tensor) -> None:
        """Subtract the update from a matrix. With a rate of 0 and `taken` False, nothing changes."""
        rate = torch.as_tensor(lr * (UPDATE_RMS * math.sqrt(max(matrix.shape))), dtype=matrix.dtype)
        matrix.addcmul_(self.orthogonalize(matrix, taken), rate, value=-1)  # torch's `alpha` would be read by the host

    def orthogonalize(self, matrix: torch.Tensor, taken: bool | torch.Tensor) -> torch.Tensor:
        """The orthogonalized momentum of a matrix, in bfloat16. The momentum is updated."""
        gradient, state = matrix.grad, self.state[matrix]
        assert gradient is not None
        if not state:
            state.update(self.initial_state(matrix))
        momentum: torch.Tensor = state["momentum_buffer"]
        if self.grad_scale is not None:  # the momentum stays the same if it moves towards itself
            gradient = torch.where(torch.as_tensor(taken), gradient / self.grad_scale, momentum)
        momentum.lerp_(gradient, 1 - MOMENTUM)
        return _zeropower_via_newtonschulz(gradient.lerp(momentum, MOMENTUM), COEFFICIENTS, ITERATIONS, EPS)

    def initial_state(self, matrix: torch.Tensor) -> dict[str, Any]:
        """The state of a matrix before its first step."""
        return {"momentum_buffer": torch.zeros_like(matrix)}


class NorMuon(Muon):
    """Divides each row of an update by the root of its running mean square (Li et al. 2025, arXiv 2510.05491).

    Muon gives some neurons much larger updates than others. The state of a matrix (m, n) is its momentum and m numbers.
    """

    def move(self, matrix: torch.Tensor, lr: float | torch.Tensor, taken: bool | torch.Tensor) -> None:
        """Subtract the update from a matrix. With a rate of 0 and `taken` False, nothing changes."""
        orthogonal = self.orthogonalize(matrix, taken).to(matrix.dtype)
        mean_squares = self.state[matrix]["row_mean_squares"]
        mean_squares.lerp_(orthogonal.square().mean(1, keepdim=True), (1 - SECOND_MOMENT) * taken)
        scaled = orthogonal / (mean_squares.sqrt() + EPS)
        rms = scaled.norm().clamp(min=EPS) / math.sqrt(scaled.numel())
        matrix.sub_(lr * scaled.div_(rms).mul_(UPDATE_RMS))

    def initial_state(self, matrix: torch.Tensor) -> dict[str, Any]:
        """The state of a matrix before its first step."""
        return super().initial_state(matrix) | {"row_mean_squares": matrix.new_zeros(len(matrix), 1)}
