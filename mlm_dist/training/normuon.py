"""NorMuon: Muon with each row of an update divided by its running size (Li et al. 2025, arXiv 2510.05491)."""

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


class NorMuon(torch.optim.Optimizer):
    """Orthogonalizes updates like Muon, and divides each row by the root of its running mean square.

    Muon gives some neurons much larger updates than others. The state of a matrix (m, n) is its momentum and m numbers.
    """

    def __init__(self, matrices: list[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the matrices that have a gradient."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is not None:
                    matrix.mul_(1 - group["lr"] * group["weight_decay"])
                    matrix.sub_(group["lr"] * self.direction(matrix))

    def direction(self, matrix: torch.Tensor) -> torch.Tensor:
        """The update of a matrix at rate 1. Its moments are updated."""
        gradient, state = matrix.grad, self.state[matrix]
        assert gradient is not None
        if not state:
            state.update(initial_state(matrix))
        momentum, mean_squares = state["momentum_buffer"], state["row_mean_squares"]
        momentum.lerp_(gradient, 1 - MOMENTUM)
        orthogonal = _zeropower_via_newtonschulz(gradient.lerp(momentum, MOMENTUM), COEFFICIENTS, ITERATIONS, EPS)
        orthogonal = orthogonal.to(matrix.dtype)
        mean_squares.lerp_(orthogonal.square().mean(1, keepdim=True), 1 - SECOND_MOMENT)
        scaled: torch.Tensor = orthogonal / (mean_squares.sqrt() + EPS)
        rms = scaled.norm().clamp(min=EPS) / math.sqrt(scaled.numel())
        return scaled.div_(rms).mul_(UPDATE_RMS)


def initial_state(matrix: torch.Tensor) -> dict[str, Any]:
    """The state of a matrix before its first step."""
    return {"momentum_buffer": torch.zeros_like(matrix), "row_mean_squares": matrix.new_zeros(len(matrix), 1)}
