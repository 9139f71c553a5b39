"""Rows of a matrix that is used as a whole too."""

from typing import Any

import torch


class SharedRows(torch.autograd.Function):
    """Selects rows of a matrix (N, C), and returns the matrix for its other use. Pass it to one operation only.

    The gradient of the rows is added to that of this operation, in place. Autograd would add the two gradients as
    matrices, although one is 0 in most rows.
    """

    @staticmethod
    def forward(ctx: Any, matrix: torch.Tensor, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, C) and indices (n,) -> (n, C), (N, C)."""
        ctx.save_for_backward(indices)
        return matrix.index_select(0, indices), matrix.view_as(matrix)

    @staticmethod
    def backward(ctx: Any, of_rows: torch.Tensor, of_matrix: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Add in place. This is why there must be one other operation: its gradient then belongs to this function."""
        (indices,) = ctx.saved_tensors
        return of_matrix.index_add_(0, indices, of_rows), None


def select_rows(matrix: torch.Tensor, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Select rows of a matrix (N, C) -> (n, C), and return the matrix. Pass it to one operation only.

    On a CPU, gradients are rounded as they always were.
    """
    if not adds_in_place(matrix):
        return matrix.index_select(0, indices), matrix
    rows, same = SharedRows.apply(matrix, indices)  # type: ignore[no-untyped-call]
    return rows, same


def adds_in_place(matrix: torch.Tensor) -> bool:
    """Whether `SharedRows` selects them: on a GPU."""
    return matrix.is_cuda
