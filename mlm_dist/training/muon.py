"""Muon (Jordan et al. 2024), and NorMuon, which divides each row of an update by its running size.

For one matrix of a block, a GPU takes about as long to start a kernel as to run it. So there, all matrices are updated
together: element by element as one vector, and in stacks of those of the same shape. A CPU takes one matrix at a time,
which needs no copies (47 instead of 54 ms for four blocks of width 256, on one core). The results agree up to rounding.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

MOMENTUM = 0.95
SECOND_MOMENT = 0.95  # decay of the mean square of a row

# Those of torch.optim.Muon.
COEFFICIENTS, ITERATIONS = (3.4445, -4.7750, 2.0315), 5
EPS = 1e-7

UPDATE_RMS = 0.2  # root mean square of an update at rate 1, as of AdamW

Stack = list[torch.Tensor]  # matrices of the same shape
Scalar = float | torch.Tensor  # of the host or of the device


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
        taken: Scalar = True
        for group in self.param_groups:
            lr = group["lr"]
            if self.found_inf is not None:
                taken = self.found_inf == 0
                lr = torch.where(taken, lr, 0)  # 0 times a NaN rate is NaN
            for stacks in updated_together([matrix for matrix in group["params"] if matrix.grad is not None]):
                self.update(stacks, lr, group["weight_decay"], taken)

    def update(self, stacks: list[Stack], lr: Scalar, decay: float, taken: Scalar) -> None:
        """Update stacks of matrices. With a rate of 0 and `taken` False, nothing changes."""
        matrices = [matrix for stack in stacks for matrix in stack]
        directions = stacked(self.directions(matrices, taken), stacks)
        values = joined(matrices).mul_(1 - lr * decay)
        for stack, of_stack, direction in zip(stacks, stacked(values, stacks), directions, strict=True):
            self.move(stack, of_stack, orthogonalize(direction), lr, taken)
        write_back(values, matrices)

    def directions(self, matrices: list[torch.Tensor], taken: Scalar) -> torch.Tensor:
        """What Nesterov's momentum follows, not yet orthogonalized, `joined` in bf16. The momenta are updated."""
        for matrix in matrices:
            if not self.state[matrix]:
                self.state[matrix].update(self.initial_state(matrix))
        buffers = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
        gradients = joined([matrix.grad for matrix in matrices if matrix.grad is not None])
        momenta = joined(buffers)
        if self.grad_scale is not None:  # a momentum stays the same if it moves towards itself
            gradients = torch.where(torch.as_tensor(taken), gradients / self.grad_scale, momenta)
        momenta.lerp_(gradients, 1 - MOMENTUM)
        write_back(momenta, buffers)
        return gradients.lerp(momenta, MOMENTUM).bfloat16()

    def move(self, stack: Stack, values: torch.Tensor, orthogonal: torch.Tensor, lr: Scalar, taken: Scalar) -> None:
        """Subtract the update from the values of a stack, given its orthogonalized momenta (bf16)."""
        rate = torch.as_tensor(lr * (UPDATE_RMS * math.sqrt(max(values.shape[-2:]))), dtype=values.dtype)
        values.addcmul_(orthogonal, rate, value=-1)  # torch's `alpha` would be read by the host

    def initial_state(self, matrix: torch.Tensor) -> dict[str, Any]:
        """The state of a matrix before its first step."""
        return {"momentum_buffer": torch.zeros_like(matrix)}


class NorMuon(Muon):
    """Divides each row of an update by the root of its running mean square (Li et al. 2025, arXiv 2510.05491).

    Muon gives some neurons much larger updates than others. The state of a matrix (m, n) is its momentum and m numbers.
    """

    def move(self, stack: Stack, values: torch.Tensor, orthogonal: torch.Tensor, lr: Scalar, taken: Scalar) -> None:
        """Subtract the update from the values of a stack, given its orthogonalized momenta (bf16)."""
        orthogonal = orthogonal.to(values.dtype)
        buffers = [self.state[matrix]["row_mean_squares"] for matrix in stack]
        mean_squares = joined(buffers)
        by_row = mean_squares.view(*values.shape[:-1], 1)
        by_row.lerp_(orthogonal.square().mean(-1, keepdim=True), (1 - SECOND_MOMENT) * taken)
        write_back(mean_squares, buffers)
        scaled = orthogonal / (by_row.sqrt() + EPS)
        rms = norms(scaled).clamp(min=EPS) / math.sqrt(stack[0].numel())
        values.sub_(lr * scaled.div_(rms).mul_(UPDATE_RMS))

    def initial_state(self, matrix: torch.Tensor) -> dict[str, Any]:
        """The state of a matrix before its first step."""
        return super().initial_state(matrix) | {"row_mean_squares": matrix.new_zeros(len(matrix), 1)}


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """The Newton-Schulz iteration of `torch.optim.Muon` on bf16 matrices ([n,] rows, columns), which it overwrites."""
    a, b, c = COEFFICIENTS
    add_product: Callable[..., torch.Tensor] = torch.addmm if matrices.ndim == 2 else torch.baddbmm
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    x.div_(norms(x).clamp(min=EPS))
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        polynomial = add_product(gram, gram, gram, beta=b, alpha=c)
        x = add_product(x, polynomial, x, beta=a)
    return x.mT if is_tall else x


def norms(matrices: torch.Tensor) -> torch.Tensor:
    """The Frobenius norms ([n,] 1, 1) of matrices ([n,] rows, columns)."""
    result: torch.Tensor = torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True)
    return result


def computes_together(matrix: torch.Tensor) -> bool:
    """Whether a matrix is updated together with others: on a GPU."""
    return matrix.is_cuda


def updated_together(matrices: list[torch.Tensor]) -> list[list[Stack]]:
    """The matrices, in lists of stacks that are updated together."""
    if not matrices or not computes_together(matrices[0]):
        return [[[matrix]] for matrix in matrices]
    stacks: dict[torch.Size, Stack] = {}
    for matrix in matrices:
        stacks.setdefault(matrix.shape, []).append(matrix)
    return [list(stacks.values())]


def joined(tensors: list[torch.Tensor]) -> torch.Tensor:
    """The elements of tensors, copied into one vector. A single tensor is returned itself."""
    return torch.cat([tensor.flatten() for tensor in tensors]) if len(tensors) > 1 else tensors[0]


def write_back(values: torch.Tensor, tensors: list[torch.Tensor]) -> None:
    """Copy what was `joined`, and has changed, into the tensors."""
    if len(tensors) > 1:
        parts = torch.split(values, [tensor.numel() for tensor in tensors])
        torch._foreach_copy_(tensors, [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)])


def stacked(values: torch.Tensor, stacks: list[Stack]) -> list[torch.Tensor]:
    """Views of the `joined` values of stacks, each (matrices, rows, columns), or (rows, columns) of a single matrix."""
    if len(stacks) == len(stacks[0]) == 1:
        return [values]
    parts = torch.split(values, [len(stack) * stack[0].numel() for stack in stacks])
    return [part.view(len(stack), *stack[0].shape) for part, stack in zip(parts, stacks, strict=True)]
