"""The loss on a GPU: a Triton kernel that replaces logits by their gradient.

Written out in torch operations, the loss passes over the logits about ten times. The kernel reads a row of logits from
memory once, again from the cache, and writes it once. Rows of 50258 numbers in bf16 are not aligned to 16 bytes, which
tensor cores and wide memory accesses require, so the vocabulary is padded here. The model and its files are not.

Triton comes with the builds of torch for CUDA. Its interpreter runs the kernels on a CPU (`TRITON_INTERPRET=1`).
"""

import torch
import triton
import triton.language as tl

ALIGNMENT = 64  # entries of the padded vocabulary are a multiple of this
BLOCK = 4096  # entries that a program of the kernel handles at a time
WARPS = 8
ROWS = 64  # rows of the tile of a program that sums columns; it has `ALIGNMENT` columns


@triton.jit
def soft_cap(logits, softcap, CAPPED: tl.constexpr):  # noqa: N803
    """The logits with a soft cap, if they have one."""
    if CAPPED:
        logits = softcap * (2 * tl.sigmoid(2 * logits / softcap) - 1)  # the hyperbolic tangent, which Triton lacks
    return logits


@triton.jit
def load_logits(first, bias, columns, used, softcap, CAPPED: tl.constexpr):  # noqa: N803
    """Logits of a row with their bias and cap, in fp32; -inf where they are not used."""
    logits = tl.load(first + columns, used, other=-float("inf")).to(tl.float32)
    logits = soft_cap(logits + tl.load(bias + columns, used, other=0.0), softcap, CAPPED)
    return tl.where(used, logits, -float("inf")) if CAPPED else logits


@triton.jit
def cross_entropy_kernel(
    logits,
    bias,
    targets,
    losses,
    stride,
    scale,
    softcap,
    CAPPED: tl.constexpr,  # noqa: N803
    V: tl.constexpr,  # noqa: N803
    B: tl.constexpr,  # noqa: N803
):
    """Cross-entropy of one row of V logits. They become its gradient, times `scale`."""
    row = tl.program_id(0).to(tl.int64)
    first = logits + row * stride
    target = tl.load(targets + row)
    highest = -float("inf")
    total = 0.0
    for start in range(0, V, B):
        columns = start + tl.arange(0, B)
        used = columns < V
        x = load_logits(first, bias, columns, used, softcap, CAPPED)
        higher = tl.maximum(highest, tl.max(x, 0))
        total = total * tl.exp(highest - higher) + tl.sum(tl.exp(x - higher), 0)
        highest = higher
    at_target = soft_cap(tl.load(first + target).to(tl.float32) + tl.load(bias + target), softcap, CAPPED)
    tl.store(losses + row, tl.log(total) + highest - at_target)
    tl.debug_barrier()  # all threads have read the target before its logit is overwritten
    for start in range(0, V, B):
        columns = start + tl.arange(0, B)
        used = columns < V
        x = load_logits(first, bias, columns, used, softcap, CAPPED)
        gradient = (tl.exp(x - highest) / total - tl.where(columns == target, 1.0, 0.0)) * scale
        if CAPPED:
            gradient *= 1 - x / softcap * (x / softcap)  # the derivative of the cap
        tl.store(first + columns, gradient.to(logits.dtype.element_ty), used)


@triton.jit
def column_sums_kernel(
    matrix,
    row_weights,
    sums,
    stride,
    N: tl.constexpr,  # noqa: N803
    C: tl.constexpr,  # noqa: N803
    R: tl.constexpr,  # noqa: N803
):
    """Weighted sums of C columns of a matrix with N rows, in fp32."""
    columns = tl.program_id(0) * C + tl.arange(0, C)
    total = tl.zeros((C,), tl.float32)
    for start in range(0, N, R):
        rows = start + tl.arange(0, R)
        used = rows < N
        weights = tl.load(row_weights + rows, used, other=0.0)
        tile = tl.load(matrix + rows.to(tl.int64)[:, None] * stride + columns[None, :], used[:, None], other=0.0)
        total += tl.sum(tile.to(tl.float32) * weights[:, None], 0)
    tl.store(sums + columns, total)


def pad_vocabulary(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A copy of a matrix (V, C) in a dtype, with rows of zeros appended up to a multiple of `ALIGNMENT` rows."""
    entries = len(weight)
    padded = weight.new_empty(entries + -entries % ALIGNMENT, weight.shape[1], dtype=dtype)
    padded[:entries] = weight
    padded[entries:] = 0
    return padded


def replace_by_gradient(
    logits: torch.Tensor, bias: torch.Tensor, targets: torch.Tensor, scale: float, softcap: float | None = None
) -> torch.Tensor:
    """Cross-entropy of each row of logits.

    Args:
        logits: (N, P) without the bias, P the size of the padded vocabulary. They become the gradient, softmax -
            one-hot, times `scale` and the derivative of the soft cap. Those of the padding are not read, and stay 0.
        bias: (V,) fp32.
        targets: (N,) token ids.
        scale: of the gradient.
        softcap: the soft cap of the logits.

    Returns:
        (N,) fp32, in nats.
    """
    losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    sizes = {"CAPPED": softcap is not None, "V": len(bias), "B": BLOCK}
    scalars = logits.stride(0), scale, softcap or 0.0
    cross_entropy_kernel[(len(logits),)](logits, bias, targets, losses, *scalars, **sizes, num_warps=WARPS)
    return losses


def column_sums(matrix: torch.Tensor, row_weights: torch.Tensor) -> torch.Tensor:
    """Weighted sum of the rows of a matrix: (N, P), (N,) -> (P,) fp32. P is a multiple of `ALIGNMENT`."""
    rows, columns = matrix.shape
    sums = torch.empty(columns, dtype=torch.float32, device=matrix.device)
    grid = (columns // ALIGNMENT,)
    column_sums_kernel[grid](matrix, row_weights, sums, matrix.stride(0), N=rows, C=ALIGNMENT, R=ROWS)
    return sums


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Matrix product in fp32. A CPU has no product of low-precision matrices with a result in fp32."""
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda and a.dtype != torch.float32 else a.float() @ b.float()
