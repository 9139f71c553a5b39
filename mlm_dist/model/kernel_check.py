"""Checks that the Triton kernels run on a device and agree with torch's operations.

Each is called as in a step, through its autograd function: with the widths and lengths that it is compiled for, but few
rows. Every row of its results and gradients is compared with that of torch's operations in fp32.

Shapes: B rows, T tokens per row, K queries per row, C channels, N predictions, V entries.
"""

import textwrap
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from mlm_dist.config import ModelConfig
from mlm_dist.model import kernels, short_attention
from mlm_dist.model.activation import inner_widths
from mlm_dist.model.add_norm import AddNorm
from mlm_dist.model.embedding import Embedding
from mlm_dist.model.kernels import Kernel
from mlm_dist.model.loss import OutputCrossEntropyOnGPU
from mlm_dist.model.relu_layers import ReluLayers
from mlm_dist.model.short_attention import ShortAttention
from mlm_dist.model.soft_cap import soft_cap

ROWS = 16  # B; a multiple of 16, as Triton compiles other sizes anew
POSITIONS = 144  # rows of kernels that compute each position by itself: several programs, the last one partly filled
ENTRIES = 48  # V where kernels are not compiled for it; tokens repeat
CHANNELS = 64  # C where kernels are not compiled for it

# Of a tensor, and of a row of it, relative to their norms. Torch's own operations in bf16 reach 0.6 % and 2 %.
LARGEST_DIFFERENCE = 0.01
LARGEST_DIFFERENCE_OF_ROW = 0.05


class Case(NamedTuple):
    """A call of a function with kernels.

    Attributes:
        function: the function.
        definition: the same function in torch's operations.
        inputs: arguments of both. Gradients are taken with respect to these.
    """

    function: Callable[..., Any]
    definition: Callable[..., Any]
    inputs: list[torch.Tensor]


class Draw:
    """Random tensors on a device, the same at each start. No other generator changes."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.generator = torch.Generator(device).manual_seed(0)
        self.device = device
        self.dtype = dtype

    def normal(self, *shape: int, std: float = 1.0) -> torch.Tensor:
        """Normally distributed values that the dtype can represent."""
        return (std * torch.randn(shape, generator=self.generator, device=self.device)).to(self.dtype)

    def integers(self, low: int, high: int, *shape: int) -> torch.Tensor:
        """Integers from `low` to `high` - 1."""
        return torch.randint(low, high, shape, generator=self.generator, device=self.device)


def find_failures(config: ModelConfig, slots: int, device: torch.device, dtype: torch.dtype) -> dict[Kernel, str]:
    """Why kernels that a run would use must not be used. Those that are switched off are not checked.

    Args:
        config: the shape of the model. Its `block_size` is the length of the rows.
        slots: queries per row of the last block.
        device: a GPU.
        dtype: the dtype of matrix products. Blocks have kernels in bf16 only.

    Returns:
        A reason for each kernel that raises an error or computes something else. It is empty if all are right.
    """
    used: list[Kernel] = [*CASES] if dtype == torch.bfloat16 else ["loss"]
    found = {kernel: find_failure(kernel, config, slots, Draw(device, dtype)) for kernel in used}
    return {kernel: reason for kernel, reason in found.items() if reason}


def find_failure(kernel: Kernel, config: ModelConfig, slots: int, draw: Draw) -> str:
    """Why a kernel must not be used; empty if it is right, or is not used anyway."""
    if kernel in kernels.switched_off():
        return ""
    try:
        cases = CASES[kernel](config, slots, draw)
        if cases and not kernels.HAS_TRITON:
            return "Triton is not installed"
        differences = [
            find_difference(value, expected)
            for case in cases
            for value, expected in zip(*results_and_gradients(case, draw), strict=True)
        ]
    except Exception as error:  # of any part of a compiler, or of the device
        return textwrap.shorten(f"{type(error).__name__}: {error}", 300, placeholder=" ...")
    return next(filter(None, differences), "")


def results_and_gradients(case: Case, draw: Draw) -> list[list[torch.Tensor]]:
    """Those of the function, and those of its definition in fp32, for the same random gradients of the results."""
    both = compute(case.function, case.inputs), compute(case.definition, [x.float() for x in case.inputs])
    of_results = [draw.normal(*result.shape) for result in both[0][1]]
    found = []
    for given, results in both:
        # Copies, because a backward pass may write into its gradient.
        copies = [gradient.to(result.dtype, copy=True) for gradient, result in zip(of_results, results, strict=True)]
        found.append([*results, *torch.autograd.grad(results, given, copies)])
    return found


def compute(function: Callable[..., Any], inputs: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Leaves of a graph with the values of the inputs, and the results of a function of them."""
    given = [x.detach().requires_grad_() for x in inputs]
    results = function(*given)
    return given, list(results) if isinstance(results, tuple) else [results]


def find_difference(value: torch.Tensor, expected: torch.Tensor) -> str:
    """How a tensor differs from the expected one, as a whole or in a row; empty if this is rounding.

    The rows of a vector are its elements.
    """
    length = expected.shape[-1] if expected.ndim > 1 else 1
    rows, expected_rows = (x.detach().float().reshape(-1, length) for x in (value, expected))
    distances, norms = (rows - expected_rows).norm(dim=1), expected_rows.norm(dim=1)
    least = 0.01 * norms.square().mean().sqrt()  # of a sum that happens to be near 0
    is_rounding = distances.norm() <= LARGEST_DIFFERENCE * norms.norm()
    is_rounding &= (distances <= LARGEST_DIFFERENCE_OF_ROW * (norms + least)).all()
    if is_rounding:  # false for NaN
        return ""
    of_all, of_row = (distances.norm() / norms.norm()).item(), (distances / (norms + least)).max().item()
    return f"{100 * of_all:.2g} % off torch's operations, and {100 * of_row:.2g} % in one row"


def loss_cases(config: ModelConfig, slots: int, draw: Draw) -> list[Case]:
    """The output layer and its loss, with the whole vocabulary."""
    targets = draw.integers(0, config.entries, CHANNELS)
    loss_weights = draw.integers(1, 4, CHANNELS).float()

    def function(*inputs: torch.Tensor) -> Any:
        return OutputCrossEntropyOnGPU.apply(  # type: ignore[no-untyped-call]
            *inputs, targets, loss_weights, draw.dtype, config.logit_softcap
        )

    def definition(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        logits = soft_cap(hidden @ weight.t() + bias, config.logit_softcap)
        return torch.dot(F.cross_entropy(logits, targets, reduction="none"), loss_weights)

    hidden = draw.normal(CHANNELS, CHANNELS)  # in fp16, autocast's LayerNorm returns fp32
    hidden = hidden if draw.dtype == torch.bfloat16 else hidden.float()
    weight = draw.normal(config.entries, CHANNELS, std=CHANNELS**-0.5).float()
    return [Case(function, definition, [hidden, weight, draw.normal(config.entries).float()])]


def embedding_cases(config: ModelConfig, slots: int, draw: Draw) -> list[Case]:
    """The look-up of tokens and positions."""
    if config.positions != "learned" or not config.tie_embeddings:
        return []
    tokens = draw.integers(0, ENTRIES, ROWS, config.block_size)

    def function(weight: torch.Tensor, positions: torch.Tensor) -> Any:
        return Embedding.apply(weight, tokens, positions)  # type: ignore[no-untyped-call]

    def definition(weight: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        embedded = weight.index_select(0, tokens.flatten()).view(*tokens.shape, -1)
        return embedded + positions, weight.view_as(weight)

    shapes = (ENTRIES, config.embedding_dim), (config.block_size, config.embedding_dim)
    return [Case(function, definition, [draw.normal(*shape).float() for shape in shapes])]


def norm_cases(config: ModelConfig, slots: int, draw: Draw) -> list[Case]:
    """LayerNorm of the residual stream, alone and with a branch added. Multiples of 1/32 have exact sums in bf16."""
    eps, width = 1e-12, config.embedding_dim
    x, branch = ((draw.integers(-64, 65, POSITIONS, width) / 32).to(draw.dtype) for _ in range(2))

    def function(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, branch: torch.Tensor | None = None) -> Any:
        return AddNorm.apply(x, branch, weight, bias, eps)  # type: ignore[no-untyped-call]

    def definition(
        x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, branch: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total = x if branch is None else x + branch
        return total.view_as(total), F.layer_norm(total, (width,), weight, bias, eps)

    inputs = [x, draw.normal(width, std=0.3) + 1, draw.normal(width)]
    return [Case(function, definition, given) for given in (inputs, [*inputs, branch])]


def attention_cases(config: ModelConfig, slots: int, draw: Draw) -> list[Case]:
    """Attention of short rows: of all positions, and of the queries of the last block."""
    width, length = config.embedding_dim, config.block_size
    is_plain = config.positions == "learned" and not config.qk_norm
    if not (is_plain and short_attention.fits(length, config.head_size)):
        return []

    def function(packed: torch.Tensor, query: torch.Tensor | None = None) -> Any:
        return ShortAttention.apply(packed, query, config.heads)  # type: ignore[no-untyped-call]

    def definition(packed: torch.Tensor, query: torch.Tensor | None = None) -> torch.Tensor:
        split = [x.view(*x.shape[:2], config.heads, -1) for x in short_attention.parts(packed, query)]
        queries, keys, values = (x.transpose(1, 2) for x in split)  # (B, H, T or K, D)
        scores: torch.Tensor = queries @ keys.transpose(-2, -1) * config.head_size**-0.5
        return (scores.softmax(-1) @ values).transpose(1, 2).flatten(2)

    keys_and_values, queries = draw.normal(ROWS, length, 2 * width), draw.normal(ROWS, slots, width)
    inputs = [draw.normal(ROWS, length, 3 * width)], [keys_and_values, queries]
    return [Case(function, definition, given) for given in inputs]


def feed_forward_cases(config: ModelConfig, slots: int, draw: Draw) -> list[Case]:
    """The feed-forward layers with ReLU. Their inner values are sums of integers plus a half: none rounds across 0."""
    if config.activation != "relu":
        return []
    width, inner = config.embedding_dim, inner_widths(config).expanded
    rows, expand = (draw.integers(-1, 2, count, width).to(draw.dtype) for count in (POSITIONS, inner))
    expand_bias = (draw.integers(-4, 4, inner) + 0.5).to(draw.dtype)
    contract, contract_bias = draw.normal(width, inner, std=inner**-0.5), draw.normal(width)

    def definition(rows: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        return F.linear(F.linear(rows, *parameters[:2]).relu(), *parameters[2:])

    return [Case(ReluLayers.apply, definition, [rows, expand, expand_bias, contract, contract_bias])]


CASES: dict[Kernel, Callable[[ModelConfig, int, Draw], list[Case]]] = {
    "loss": loss_cases,
    "embedding": embedding_cases,
    "norm": norm_cases,
    "attention": attention_cases,
    "feed-forward": feed_forward_cases,
}
