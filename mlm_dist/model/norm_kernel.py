"""The Triton kernels of `AddNorm`. Their interpreter runs them on a CPU (`TRITON_INTERPRET=1`).

Shapes: N rows, C channels.
"""

import torch
import triton
import triton.language as tl

TILE = 4096  # elements that a program handles at a time
ROWS = 64  # rows that a program of the backward pass handles
WARPS = 4


@triton.jit
def load_rows(matrix, rows, is_used, C: tl.constexpr, WIDTH: tl.constexpr):  # noqa: N803
    """Rows of a matrix (n, C) in fp32."""
    return tl.load(matrix + rows[:, None] * C + tl.arange(0, WIDTH)[None, :], is_used, other=0.0).to(tl.float32)


@triton.jit
def add_norm_kernel(
    x,
    branch,
    weight,
    bias,
    total,
    normed,
    statistics,
    n,
    eps,
    ADDS: tl.constexpr,  # noqa: N803
    C: tl.constexpr,  # noqa: N803
    WIDTH: tl.constexpr,  # noqa: N803
    R: tl.constexpr,  # noqa: N803
):
    """Sums of R rows, their LayerNorm, and their means and inverse deviations."""
    rows = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    columns = tl.arange(0, WIDTH)
    is_column = columns < C
    is_used = (rows < n)[:, None] & is_column[None, :]
    places = rows[:, None] * C + columns[None, :]
    values = load_rows(x, rows, is_used, C, WIDTH)
    if ADDS:
        values += load_rows(branch, rows, is_used, C, WIDTH)
        values = values.to(total.dtype.element_ty)  # the norm is that of the stored sum
        tl.store(total + places, values, is_used)
        values = values.to(tl.float32)
    mean = tl.sum(values, 1) / C
    centred = tl.where(is_used, values - mean[:, None], 0.0)
    inverse = 1 / tl.sqrt(tl.sum(centred * centred, 1) / C + eps)
    tl.store(statistics + rows, mean, rows < n)
    tl.store(statistics + n + rows, inverse, rows < n)
    scale = tl.load(weight + columns, is_column, other=0.0).to(tl.float32)
    shift = tl.load(bias + columns, is_column, other=0.0).to(tl.float32)
    result = centred * inverse[:, None] * scale[None, :] + shift[None, :]
    tl.store(normed + places, result.to(normed.dtype.element_ty), is_used)


@triton.jit
def add_norm_backward_kernel(
    of_total,
    of_normed,
    total,
    weight,
    statistics,
    of_x,
    parts,
    n,
    C: tl.constexpr,  # noqa: N803
    WIDTH: tl.constexpr,  # noqa: N803
    R: tl.constexpr,  # noqa: N803
    COUNT: tl.constexpr,  # noqa: N803
):
    """Gradients of COUNT rows, R at a time, and their part of those of weight and bias."""
    columns = tl.arange(0, WIDTH)
    is_column = columns < C
    scale = tl.load(weight + columns, is_column, other=0.0).to(tl.float32)
    of_weight, of_bias = tl.zeros((WIDTH,), tl.float32), tl.zeros((WIDTH,), tl.float32)
    for start in range(0, COUNT, R):
        rows = tl.program_id(0).to(tl.int64) * COUNT + start + tl.arange(0, R)
        is_used = (rows < n)[:, None] & is_column[None, :]
        gradient = load_rows(of_normed, rows, is_used, C, WIDTH)
        mean = tl.load(statistics + rows, rows < n, other=0.0)
        inverse = tl.load(statistics + n + rows, rows < n, other=0.0)
        normal = tl.where(is_used, (load_rows(total, rows, is_used, C, WIDTH) - mean[:, None]) * inverse[:, None], 0.0)
        of_weight += tl.sum(gradient * normal, 0)
        of_bias += tl.sum(gradient, 0)
        gradient *= scale[None, :]
        along = tl.sum(gradient * normal, 1) / C
        centred = gradient - (tl.sum(gradient, 1) / C)[:, None] - normal * along[:, None]
        result = load_rows(of_total, rows, is_used, C, WIDTH) + centred * inverse[:, None]
        tl.store(of_x + rows[:, None] * C + columns[None, :], result.to(of_x.dtype.element_ty), is_used)
    part = parts + tl.program_id(0) * 2 * C + columns
    tl.store(part, of_weight, is_column)
    tl.store(part + C, of_bias, is_column)


def add_norm(
    x: torch.Tensor, branch: torch.Tensor | None, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The sum of two tensors (..., C), or the first one; its LayerNorm; means and inverse deviations (2, N) in fp32."""
    total = x if branch is None else torch.empty_like(x)
    normed, given = torch.empty_like(x), x if branch is None else branch.contiguous()
    rows = x.numel() // x.shape[-1]
    statistics = torch.empty(2, rows, dtype=torch.float32, device=x.device)
    fixed = sizes(x.shape[-1])
    add_norm_kernel[(triton.cdiv(rows, fixed["R"]),)](
        x, given, weight, bias, total, normed, statistics, rows, eps, ADDS=branch is not None, **fixed, num_warps=WARPS
    )
    return total, normed, statistics


def add_norm_backward(
    of_total: torch.Tensor, of_normed: torch.Tensor, total: torch.Tensor, weight: torch.Tensor, statistics: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient of the summands (..., C), and those of weight and bias (2, C)."""
    rows, channels = statistics.shape[1], total.shape[-1]
    programs = triton.cdiv(rows, ROWS)
    of_x, parts = torch.empty_like(total), total.new_empty(programs, 2, channels, dtype=torch.float32)
    tensors = of_total, of_normed, total, weight, statistics, of_x, parts
    add_norm_backward_kernel[(programs,)](*tensors, rows, **sizes(channels), COUNT=ROWS, num_warps=WARPS)
    return of_x, parts.sum(0).to(weight.dtype)


def sizes(channels: int) -> dict[str, int]:
    """The constants of a kernel."""
    width = triton.next_power_of_2(channels)
    return {"C": channels, "WIDTH": width, "R": min(ROWS, max(1, TILE // width))}
