"""The Triton kernels of `ShortAttention`. Their interpreter runs them on a CPU (`TRITON_INTERPRET=1`)."""

import torch
import triton
import triton.language as tl

WARPS = 4
SMALLEST = 16  # rows of a product on tensor cores


@triton.jit
def load_head(rows, stride, head, is_row, count: tl.constexpr, D: tl.constexpr):  # noqa: N803
    """The channels of a head in a row of a batch, (count, D), and where they are."""
    places = tl.arange(0, count)[:, None] * stride + head * D + tl.arange(0, D)[None, :]
    return tl.load(rows + places, is_row[:, None], other=0.0), places


@triton.jit
def softmax_of_products(query, key, is_key, D: tl.constexpr):  # noqa: N803
    """softmax(q k^T / sqrt(D)) over the keys, in fp32."""
    scores = tl.dot(query, tl.trans(key)) * (D**-0.5)
    scores = tl.where(is_key[None, :], scores, -float("inf"))
    exponentials = tl.exp(scores - tl.max(scores, 1)[:, None])
    return exponentials / tl.sum(exponentials, 1)[:, None]


@triton.jit
def attention_kernel(
    query,
    key,
    value,
    out,
    query_stride,
    key_stride,
    H: tl.constexpr,  # noqa: N803
    K: tl.constexpr,  # noqa: N803
    T: tl.constexpr,  # noqa: N803
    D: tl.constexpr,  # noqa: N803
    QUERIES: tl.constexpr,  # noqa: N803
    KEYS: tl.constexpr,  # noqa: N803
):
    """The attention of one head of one row of a batch."""
    row, head = tl.program_id(0).to(tl.int64) // H, tl.program_id(0) % H
    is_query, is_key = tl.arange(0, QUERIES) < K, tl.arange(0, KEYS) < T
    q, _ = load_head(query + row * K * query_stride, query_stride, head, is_query, QUERIES, D)
    k, _ = load_head(key + row * T * key_stride, key_stride, head, is_key, KEYS, D)
    v, _ = load_head(value + row * T * key_stride, key_stride, head, is_key, KEYS, D)
    attention = softmax_of_products(q, k, is_key, D)
    result = tl.dot(attention.to(v.dtype), v)
    places = tl.arange(0, QUERIES)[:, None] * H * D + head * D + tl.arange(0, D)[None, :]
    tl.store(out + row * K * H * D + places, result.to(out.dtype.element_ty), is_query[:, None])


@triton.jit
def attention_backward_kernel(
    gradient,
    query,
    key,
    value,
    of_query,
    of_key,
    of_value,
    query_stride,
    key_stride,
    H: tl.constexpr,  # noqa: N803
    K: tl.constexpr,  # noqa: N803
    T: tl.constexpr,  # noqa: N803
    D: tl.constexpr,  # noqa: N803
    QUERIES: tl.constexpr,  # noqa: N803
    KEYS: tl.constexpr,  # noqa: N803
):
    """The gradients of one head of one row of a batch."""
    row, head = tl.program_id(0).to(tl.int64) // H, tl.program_id(0) % H
    is_query, is_key = tl.arange(0, QUERIES) < K, tl.arange(0, KEYS) < T
    query_rows, key_rows = row * K * query_stride, row * T * key_stride
    q, query_places = load_head(query + query_rows, query_stride, head, is_query, QUERIES, D)
    k, key_places = load_head(key + key_rows, key_stride, head, is_key, KEYS, D)
    v, _ = load_head(value + key_rows, key_stride, head, is_key, KEYS, D)
    g, _ = load_head(gradient + row * K * H * D, H * D, head, is_query, QUERIES, D)
    attention = softmax_of_products(q, k, is_key, D)
    dtype = of_value.dtype.element_ty
    of_v = tl.dot(tl.trans(attention.to(dtype)), g)
    tl.store(of_value + key_rows + key_places, of_v.to(dtype), is_key[:, None])
    of_attention = tl.dot(g, tl.trans(v))
    of_scores = attention * (of_attention - tl.sum(attention * of_attention, 1)[:, None]) * (D**-0.5)
    of_scores = of_scores.to(dtype)
    tl.store(of_query + query_rows + query_places, tl.dot(of_scores, k).to(dtype), is_query[:, None])
    tl.store(of_key + key_rows + key_places, tl.dot(tl.trans(of_scores), q).to(dtype), is_key[:, None])


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int) -> torch.Tensor:
    """Attention of queries (B, K, C) to keys and values (B, T, C), which are parts of one tensor -> (B, K, C)."""
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    strides = query.stride(1), key.stride(1)
    attention_kernel[(len(query) * heads,)](query, key, value, out, *strides, **sizes(query, key, heads))
    return out


def attend_backward(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    of_query: torch.Tensor,
    of_key: torch.Tensor,
    of_value: torch.Tensor,
    heads: int,
) -> None:
    """Write the gradients of queries, keys and values, with their strides, given that of the result (B, K, C)."""
    tensors = gradient, query, key, value, of_query, of_key, of_value
    strides = query.stride(1), key.stride(1)
    attention_backward_kernel[(len(query) * heads,)](*tensors, *strides, **sizes(query, key, heads))


def sizes(query: torch.Tensor, key: torch.Tensor, heads: int) -> dict[str, int]:
    """The constants of a kernel."""
    count, length = query.shape[1], key.shape[1]
    padded = {name: max(SMALLEST, triton.next_power_of_2(n)) for name, n in (("QUERIES", count), ("KEYS", length))}
    return {"H": heads, "K": count, "T": length, "D": query.shape[2] // heads, **padded, "num_warps": WARPS}
