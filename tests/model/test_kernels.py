"""The kernels of the blocks: on a GPU, or in Triton's interpreter on a CPU; and all kernels, compiled for GPUs.

The interpreter has no products in bf16.
"""

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mlm_dist.config import ModelConfig
from mlm_dist.model import kernels, low_precision, selection
from mlm_dist.model.add_norm import AddNorm
from mlm_dist.model.embedding import Embedding
from mlm_dist.model.encoder import Encoder
from mlm_dist.model.loss import MaskedLoss
from mlm_dist.model.relu_layers import ReluLayers
from mlm_dist.model.short_attention import ShortAttention, parts
from tests.conftest import start

pytest.importorskip("triton", reason="needs triton, which comes with the builds of torch for CUDA")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PRECISE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
PRODUCTS = [torch.float32, torch.float16] + [torch.bfloat16] * torch.cuda.is_available()


def assert_agrees(function: Any, definition: Callable[..., Any], given: list[Any], dtype: torch.dtype) -> None:
    """Results and gradients of a function in a dtype are those of its definition in fp64."""
    torch.manual_seed(1)
    found: list[list[torch.Tensor]] = []
    weights: list[torch.Tensor] = []
    for compute, precision in ((function, dtype), (definition, torch.float64)):
        arguments = [
            x.to(DEVICE, dtype).to(precision).requires_grad_() if torch.is_tensor(x) and x.is_floating_point() else x
            for x in given
        ]
        results = compute(*arguments)
        results = results if isinstance(results, tuple) else (results,)
        weights = weights or [torch.randn(result.shape).to(dtype) for result in results]
        inputs = [x for x in arguments if torch.is_tensor(x) and x.requires_grad]
        gradients = torch.autograd.grad(results, inputs, [weight.to(DEVICE, precision) for weight in weights])
        found.append([*results, *gradients])
    for value, reference in zip(*found, strict=True):
        assert value.dtype == dtype
        assert (value.double() - reference).norm() <= PRECISE[dtype] * reference.norm()


@pytest.mark.parametrize("dtype", PRODUCTS)
@pytest.mark.parametrize(("rows", "width", "inner"), [(300, 96, 200), (128, 64, 128), (5, 16, 40)])
def test_feed_forward_with_relu(rows: int, width: int, inner: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    first, second = torch.randn(inner, width) / 8, torch.randn(width, inner) / 8
    given = [torch.randn(rows, width), first, torch.randn(inner), second, torch.randn(width)]
    assert_agrees(ReluLayers.apply, lambda x, a, b, c, d: F.linear(F.relu(F.linear(x, a, b)), c, d), given, dtype)


@pytest.mark.parametrize("dtype", PRODUCTS)
@pytest.mark.parametrize(("length", "queries", "heads", "size"), [(64, None, 2, 32), (24, 5, 3, 16), (7, None, 1, 64)])
def test_short_attention(length: int, queries: int | None, heads: int, size: int, dtype: torch.dtype) -> None:
    def by_definition(packed: torch.Tensor, query: torch.Tensor | None, heads: int) -> torch.Tensor:
        split = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts(packed, query))
        return F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)

    torch.manual_seed(0)
    width = heads * size
    query = None if queries is None else torch.randn(3, queries, width)
    given = [torch.randn(3, length, width * (3 if query is None else 2)), query, heads]
    assert_agrees(ShortAttention.apply, by_definition, given, dtype)


@pytest.mark.parametrize("dtype", PRECISE)
@pytest.mark.parametrize(("shape", "has_branch"), [((3, 40, 48), True), ((2, 70, 256), False), ((5, 3, 768), True)])
def test_sum_and_layer_norm(shape: tuple[int, ...], has_branch: bool, dtype: torch.dtype) -> None:
    def by_definition(x: torch.Tensor, branch: torch.Tensor | None, weight: Any, bias: Any, eps: float) -> Any:
        total = x if branch is None else x + branch
        return total, F.layer_norm(total, weight.shape, weight, bias, eps)

    torch.manual_seed(0)
    parameters = 1 + 0.3 * torch.randn(shape[-1]), torch.randn(shape[-1])
    given = [torch.randn(shape), torch.randn(shape) if has_branch else None, *parameters, 1e-12]
    assert_agrees(AddNorm.apply, by_definition, given, dtype)


@pytest.mark.parametrize("is_deterministic", [False, True])
def test_embeddings_of_tokens_that_repeat(is_deterministic: bool) -> None:
    torch.manual_seed(0)
    weight, positions, tokens = torch.randn(50, 48), torch.randn(7, 48), torch.randint(5, (9, 7), device=DEVICE)
    given = [part.to(DEVICE).requires_grad_() for part in (weight, positions)]
    of_sum, of_weight = torch.randn(9, 7, 48, device=DEVICE).bfloat16(), torch.randn(48, 50, device=DEVICE).t()
    expected = given[0][tokens] + given[1]
    gradients = torch.autograd.grad((expected, given[0]), given, (of_sum.float(), of_weight))
    found, same = Embedding.apply(given[0], tokens, given[1])
    torch.use_deterministic_algorithms(is_deterministic)
    try:
        actual = torch.autograd.grad((found, same), given, (of_sum, of_weight.clone()))
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(found.float(), expected, rtol=1e-2, atol=0)  # the interpreter does not round to nearest
    torch.testing.assert_close(actual, gradients, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("is_cut", [False, True])
def test_an_encoder_and_its_loss_with_all_kernels_but_those_of_embeddings(
    is_cut: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    shape = ModelConfig(vocab_size=100, block_size=24, embedding_dim=32, heads=2, blocks=2)
    module = MaskedLoss(Encoder(shape), 12 if is_cut else 30).to(DEVICE)
    tokens, positions = torch.randint(100, (6, 24), device=DEVICE), torch.rand(6, 24, device=DEVICE).argsort(1)[:, :5]
    weights = torch.zeros(6, 5, device=DEVICE)
    weights[:, ::3] = 1
    found = []
    for has_kernels in (False, True):
        monkeypatch.setattr(low_precision, "runs_kernel", lambda name, _, on=has_kernels: on and name != "embedding")
        monkeypatch.setattr(selection, "adds_in_place", lambda _, on=has_kernels: on)
        monkeypatch.setattr(kernels, "is_on", lambda name, _, on=has_kernels: on)
        result = module(tokens, positions, tokens[:, :5], weights)
        found.append([result.detach(), *torch.autograd.grad(result / 7, list(module.parameters()))])
    assert {"ReluLayers", "ShortAttention", "AddNorm", "SharedRows"} <= {
        type(node).__name__.removesuffix("Backward") for node in nodes(result)
    }
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


def nodes(result: torch.Tensor) -> set[Any]:
    """The nodes of the graph of a result."""
    found, left = set(), [result.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in found:
            found.add(node)
            left += [following for following, _ in node.next_functions]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernels_compile_for_gpus_without_spilled_registers_and_with_vector_accesses(capability: int) -> None:
    command = [sys.executable, "-m", "tests.model.compile_kernels", str(capability)]
    result = start(command, TRITON_INTERPRET="0")
    assert result.returncode == 0, result.stderr
    # The two scalar accesses are to the logit of the target, and to the column sums of the gradient before ReLU.
    assert result.stdout.splitlines() == [
        "cross_entropy_kernel: 0 bytes spilled, 1 scalar access",
        "column_sums_kernel: 0 bytes spilled, 0 scalar accesses",
        "gradient_before_relu_kernel: 0 bytes spilled, 1 scalar access",
        "attention_kernel: 0 bytes spilled, 0 scalar accesses",
        "attention_backward_kernel: 0 bytes spilled, 0 scalar accesses",
        "add_norm_kernel: 0 bytes spilled, 0 scalar accesses",
        "add_norm_backward_kernel: 0 bytes spilled, 0 scalar accesses",
        "look_up_kernel: 0 bytes spilled, 0 scalar accesses",
        "add_rows_kernel: 0 bytes spilled, 0 scalar accesses",
    ]
