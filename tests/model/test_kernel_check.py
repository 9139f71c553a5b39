"""Kernels are compared with torch's operations.

The kernels are stand-ins here; in the last test, those of Triton, on a GPU or in its interpreter.
"""

import importlib
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from mlm_dist.config import ModelConfig
from mlm_dist.model import kernel_check, kernels
from mlm_dist.model.encoder import Encoder
from mlm_dist.model.kernel_check import Draw, find_difference, find_failure, find_failures
from mlm_dist.model.kernels import Kernel
from mlm_dist.model.loss import MaskedLoss
from tests.model import stand_in_kernels

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CPU = torch.device("cpu")
SHAPE = ModelConfig(vocab_size=300, block_size=16, embedding_dim=32, heads=2, blocks=2)
SLOTS = 5

# For each function, the kernel that it is of, and which of its results, followed by its arguments, is damaged.
FUNCTIONS: dict[tuple[str, str], tuple[Kernel, int]] = {
    ("loss_kernel", "replace_by_gradient"): ("loss", 0),
    ("loss_kernel", "product"): ("loss", 0),
    ("loss_kernel", "column_sums"): ("loss", 0),
    ("embedding_kernel", "look_up"): ("embedding", 0),
    ("embedding_kernel", "add_rows"): ("embedding", 1),
    ("norm_kernel", "add_norm"): ("norm", 1),
    ("norm_kernel", "add_norm_backward"): ("norm", 0),
    ("attention_kernel", "attend"): ("attention", 0),
    ("attention_kernel", "attend_backward"): ("attention", 6),
    ("relu_kernel", "gradient_before_relu"): ("feed-forward", 0),
}


def fail(value: torch.Tensor) -> None:
    raise RuntimeError("out of resource: shared memory\nand more")


def scale(value: torch.Tensor) -> None:
    value *= 1.02


def forget_row(value: torch.Tensor) -> None:
    value[len(value) // 2] = 0


def insert_nan(value: torch.Tensor) -> None:
    value[(0,) * value.ndim] = math.nan


def break_function(module: str, name: str, place: int, damage: Any, patch: pytest.MonkeyPatch) -> None:
    """Damage a result of a stand-in, or an argument that it writes, after each call."""
    broken = importlib.import_module(f"mlm_dist.model.{module}")
    function = getattr(broken, name)

    def call(*arguments: Any) -> Any:
        result = function(*arguments)
        results = result if isinstance(result, tuple) else (result,)
        damage([*results, *arguments][place])
        return result

    patch.setattr(broken, name, call)


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_kernels.install(monkeypatch)


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"vocab_size": 50258, "block_size": 64, "embedding_dim": 256, "heads": 8},
        {"block_size": 7, "embedding_dim": 16, "heads": 1, "logit_softcap": 30.0},
        {"embedding_dim": 768, "heads": 12, "tie_embeddings": False},
    ],
    ids=str,
)
def test_right_kernels_have_no_failures(options: dict[str, Any], dtype: torch.dtype) -> None:
    before = torch.get_rng_state()
    assert find_failures(replace(SHAPE, **options), SLOTS, CPU, dtype) == {}
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize(("module", "name"), FUNCTIONS)
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (fail, "RuntimeError: out of resource: shared memory and more"),
        (scale, " % off torch's operations, and "),
        (forget_row, " % off torch's operations, and "),
        (insert_nan, "nan % off torch's operations, and nan % in one row"),
    ],
)
def test_a_kernel_that_fails_or_differs_is_found(
    damage: Callable[[torch.Tensor], None], reason: str, module: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, place = FUNCTIONS[module, name]
    break_function(module, name, place, damage, monkeypatch)
    failures = find_failures(SHAPE, SLOTS, CPU, torch.bfloat16)
    assert failures.keys() == {kernel}
    assert reason in failures[kernel]


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize(
    ("options", "dtype", "expected"),
    [
        ({}, torch.bfloat16, {"loss", "embedding", "norm", "attention", "feed-forward"}),
        ({}, torch.float16, {"loss"}),
        ({"activation": "gelu"}, torch.bfloat16, {"loss", "embedding", "norm", "attention"}),
        ({"positions": "rope"}, torch.bfloat16, {"loss", "norm", "feed-forward"}),
        ({"qk_norm": True, "tie_embeddings": False}, torch.bfloat16, {"loss", "norm", "feed-forward"}),
        ({"block_size": 65}, torch.bfloat16, {"loss", "embedding", "norm", "feed-forward"}),
    ],
)
def test_only_the_kernels_of_the_run_are_checked(
    options: dict[str, Any], dtype: torch.dtype, expected: set[Kernel], monkeypatch: pytest.MonkeyPatch
) -> None:
    for (module, name), (_, place) in FUNCTIONS.items():
        break_function(module, name, place, fail, monkeypatch)
    config = replace(SHAPE, **options)
    assert find_failures(config, SLOTS, CPU, dtype).keys() == expected
    kernels.switch_off(["loss", "norm"])
    assert find_failures(config, SLOTS, CPU, dtype).keys() == expected - {"loss", "norm"}


@pytest.mark.usefixtures("stand_ins")
def test_without_triton_there_are_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "HAS_TRITON", False)
    assert find_failures(SHAPE, SLOTS, CPU, torch.float32) == {"loss": "Triton is not installed"}
    assert not kernels.is_on("loss", torch.ones(1))


@pytest.mark.usefixtures("stand_ins")
def test_kernels_that_are_switched_off_are_not_called_and_torch_computes_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    module = MaskedLoss(Encoder(SHAPE), 24)
    tokens, positions = torch.randint(300, (8, 16)), torch.rand(8, 16).argsort(1)[:, :3]

    def compute() -> list[torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            result = module(tokens, positions, tokens[:, :3], torch.ones(8, 3))
        return [result.detach(), *torch.autograd.grad(result, list(module.parameters()))]

    with monkeypatch.context() as patch:
        patch.setattr(kernels, "can_run", lambda device: False)
        expected = compute()
    found = compute()
    assert not all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))  # kernels round otherwise
    torch.testing.assert_close(found[0], expected[0], rtol=1e-3, atol=0)
    for (name, function), (_, place) in FUNCTIONS.items():
        break_function(name, function, place, fail, monkeypatch)
    kernels.switch_off(find_failures(SHAPE, SLOTS, CPU, torch.bfloat16))
    assert kernels.switched_off() == set(kernel_check.CASES)
    assert all(torch.equal(a, b) for a, b in zip(compute(), expected, strict=True))


@pytest.mark.parametrize("shape", [(), (40,), (40, 8), (3, 40, 8)])
def test_a_difference_in_one_element_or_of_all_is_found_and_rounding_is_not(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    expected = torch.randn(shape)
    assert not find_difference(expected.bfloat16(), expected)
    assert find_difference(1.02 * expected, expected)
    assert find_difference(expected * torch.inf, expected)
    assert not find_difference(0 * expected, 0 * expected)
    if shape:
        value = expected.clone()
        value.view(-1)[-1] += 1
        assert find_difference(value, expected)
        assert find_difference(expected[:-1], expected[1:])


@pytest.mark.parametrize("dtype", [torch.float16] + [torch.bfloat16] * torch.cuda.is_available())
@pytest.mark.parametrize("kernel", kernel_check.CASES)
def test_the_kernels_of_triton_pass_the_check(kernel: Kernel, dtype: torch.dtype) -> None:
    pytest.importorskip("triton", reason="needs triton, which comes with the builds of torch for CUDA")
    config = replace(SHAPE, vocab_size=5000)
    assert not find_failure(kernel, config, SLOTS, Draw(DEVICE, dtype))
