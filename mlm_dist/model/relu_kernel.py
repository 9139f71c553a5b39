"""The Triton kernel of the backward pass of `ReluLayers`. Its interpreter runs it on a CPU (`TRITON_INTERPRET=1`)."""

import torch
import triton
import triton.language as tl

TILE = {"ROWS": 128, "COLUMNS": 128, "INNER": 64}  # of the product
WARPS = 8
STAGES = 3


@triton.jit
def gradient_before_relu_kernel(
    gradient,
    weight,
    activation,
    result,
    sums,
    n,
    C: tl.constexpr,  # noqa: N803
    W: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    COLUMNS: tl.constexpr,  # noqa: N803
    INNER: tl.constexpr,  # noqa: N803
):
    """A tile of the product of gradient (n, C) and weight (C, W), 0 where the activation is 0, and its column sums."""
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    tile = tl.program_id(1)
    rows = tile.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    is_row, is_column = (rows < n)[:, None], (columns < W)[None, :]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, C, INNER):
        inner = start + tl.arange(0, INNER)
        left = tl.load(gradient + rows[:, None] * C + inner[None, :], is_row & (inner < C)[None, :], other=0.0)
        right = tl.load(weight + inner[:, None] * W + columns[None, :], (inner < C)[:, None] & is_column, other=0.0)
        total = tl.dot(left, right, total)
    places = rows[:, None] * W + columns[None, :]
    kept = tl.load(activation + places, is_row & is_column, other=0.0)
    total = tl.where(kept <= 0, 0.0, total)
    tl.store(result + places, total.to(result.dtype.element_ty), is_row & is_column)
    tl.store(sums + tile * W + columns, tl.sum(total, 0), columns < W)


def gradient_before_relu(
    gradient: torch.Tensor, weight: torch.Tensor, activation: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient before ReLU, from the one after the linear layer that follows it.

    Args:
        gradient: (N, C) of the output of the layer.
        weight: (C, W) of the layer.
        activation: (N, W), its input.

    Returns:
        (N, W), and its sum over the rows, (W,), before it is rounded.
    """
    (rows, channels), width = gradient.shape, weight.shape[1]
    result = torch.empty_like(activation)
    grid = triton.cdiv(width, TILE["COLUMNS"]), triton.cdiv(rows, TILE["ROWS"])
    sums = activation.new_empty(grid[1], width, dtype=torch.float32)
    gradient_before_relu_kernel[grid](
        gradient.contiguous(),
        weight,
        activation,
        result,
        sums,
        rows,
        C=channels,
        W=width,
        **TILE,
        num_warps=WARPS,
        num_stages=STAGES,
    )
    return result, sums.sum(0).to(activation.dtype)
