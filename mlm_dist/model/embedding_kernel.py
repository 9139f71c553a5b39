"""The Triton kernels of `Embedding`. Their interpreter runs them on a CPU (`TRITON_INTERPRET=1`).

Shapes: N tokens in rows of T, C channels, V entries.
"""

import torch
import triton
import triton.language as tl

TILE = 4096  # elements that a program handles
WARPS = 4


@triton.jit
def look_up_kernel(
    weight,
    tokens,
    positions,
    out,
    n,
    T: tl.constexpr,  # noqa: N803
    C: tl.constexpr,  # noqa: N803
    WIDTH: tl.constexpr,  # noqa: N803
    R: tl.constexpr,  # noqa: N803
):
    """Embeddings of R tokens plus those of their positions."""
    rows, columns = tl.program_id(0) * R + tl.arange(0, R), tl.arange(0, WIDTH)[None, :]
    is_used = (rows < n)[:, None] & (columns < C)
    token = tl.load(tokens + rows, rows < n, other=0)[:, None]
    total = tl.load(weight + token * C + columns, is_used, other=0.0)
    total += tl.load(positions + (rows % T)[:, None] * C + columns, is_used, other=0.0)
    tl.store(out + rows.to(tl.int64)[:, None] * C + columns, total.to(out.dtype.element_ty), is_used)


@triton.jit
def add_rows_kernel(
    weight,
    tokens,
    gradient,
    n,
    C: tl.constexpr,  # noqa: N803
    WIDTH: tl.constexpr,  # noqa: N803
    R: tl.constexpr,  # noqa: N803
):
    """Adds the gradients of R tokens to their rows of a matrix."""
    rows, columns = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R), tl.arange(0, WIDTH)[None, :]
    is_used = (rows < n)[:, None] & (columns < C)
    token = tl.load(tokens + rows, rows < n, other=0)[:, None]
    values = tl.load(gradient + rows[:, None] * C + columns, is_used, other=0.0)
    tl.atomic_add(weight + token * C + columns, values.to(tl.float32), is_used, sem="relaxed")


def look_up(weight: torch.Tensor, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Rows of weight (V, C) for tokens (B, T), plus positions (T, C) -> (B, T, C) in bf16."""
    out = torch.empty(*tokens.shape, weight.shape[1], dtype=torch.bfloat16, device=weight.device)
    grid, sizes = launch(tokens, weight)
    given = weight, tokens.contiguous(), positions.contiguous(), out, tokens.numel()
    look_up_kernel[grid](*given, T=tokens.shape[1], **sizes, num_warps=WARPS)
    return out


def add_rows(weight: torch.Tensor, tokens: torch.Tensor, gradient: torch.Tensor) -> None:
    """Add gradients (B, T, C) of tokens (B, T) to their rows of a matrix (V, C) in fp32; both are contiguous."""
    grid, sizes = launch(tokens, weight)
    add_rows_kernel[grid](weight, tokens.contiguous(), gradient, tokens.numel(), **sizes, num_warps=WARPS)


def launch(tokens: torch.Tensor, weight: torch.Tensor) -> tuple[tuple[int], dict[str, int]]:
    """The number of programs and the constants of a kernel."""
    channels = weight.shape[1]
    width = triton.next_power_of_2(channels)
    rows = max(1, TILE // width)
    return (triton.cdiv(tokens.numel(), rows),), {"C": channels, "WIDTH": width, "R": rows}
