"""Blocks in bf16, on the CPU."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from mlm_dist.config import ModelConfig
from mlm_dist.model import low_precision, selection
from mlm_dist.model.encoder import Encoder
from mlm_dist.model.loss import MaskedLoss
from mlm_dist.model.selection import SharedRows

SHAPE = ModelConfig(vocab_size=300, block_size=16, embedding_dim=256, heads=8, blocks=4)


def gradients(
    loss: MaskedLoss, function: Callable[..., torch.Tensor] | None = None, dtype: torch.dtype = torch.bfloat16
) -> list[torch.Tensor]:
    """The loss and its gradients, by autocast."""
    torch.manual_seed(2)
    inputs, positions = torch.randint(300, (8, 16)), torch.rand(8, 16).argsort(1)[:, :3]
    targets, weights = torch.randint(300, (8, 3)), torch.ones(8, 3)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        result = (loss if function is None else function)(inputs, positions, targets, weights)
    return [result.detach(), *torch.autograd.grad(result, list(loss.parameters()))]


@pytest.fixture
def loss() -> MaskedLoss:
    torch.manual_seed(1)
    return MaskedLoss(Encoder(SHAPE), 24)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"positions": "rope", "qk_norm": True, "activation": "geglu", "logit_softcap": 30.0},
        {"activation": "relu2", "tie_embeddings": False},
    ],
    ids=str,
)
def test_gradients_of_low_blocks_are_about_as_precise_as_those_of_autocast(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    loss = MaskedLoss(Encoder(replace(SHAPE, **options)), 24)
    exact, by_autocast = gradients(loss, dtype=torch.float32), gradients(loss)
    monkeypatch.setattr(low_precision, "dtype_of_blocks", lambda x: torch.bfloat16)
    monkeypatch.setattr(selection, "adds_in_place", lambda matrix: True)
    low = gradients(loss)
    assert {gradient.dtype for gradient in low} == {torch.float32}
    errors = [
        torch.cat([(a - b).flatten() for a, b in zip(found[1:], exact[1:], strict=True)]).norm()
        for found in (low, by_autocast)
    ]
    assert errors[0] <= 1.5 * errors[1]
    assert not torch.equal(low[-1], by_autocast[-1])


def test_all_activations_of_low_blocks_are_low(loss: MaskedLoss, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(low_precision, "dtype_of_blocks", lambda x: torch.bfloat16)
    dtypes = []
    for module in loss.encoder.blocks.modules():  # type: ignore[union-attr]
        if not list(module.children()):
            module.register_forward_hook(lambda *given: dtypes.append(given[-1].dtype))
    gradients(loss)
    assert set(dtypes) == {torch.bfloat16}


@pytest.mark.slow
def test_low_blocks_compile_to_one_graph(loss: MaskedLoss, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(low_precision, "dtype_of_blocks", lambda x: torch.bfloat16)
    monkeypatch.setattr(selection, "adds_in_place", lambda matrix: True)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=False)
    for found, reference in zip(gradients(loss, compiled), gradients(loss), strict=True):
        torch.testing.assert_close(found, reference)


def test_the_gradient_of_selected_rows_is_added_in_place() -> None:
    matrix, indices = torch.randn(6, 4, requires_grad=True), torch.tensor([1, 3, 3])
    of_rows, of_matrix = torch.randn(3, 4), torch.randn(6, 4)
    expected = torch.autograd.grad((matrix[indices], matrix), matrix, (of_rows, of_matrix.clone()))
    (found,) = torch.autograd.grad(SharedRows.apply(matrix, indices), matrix, (of_rows, of_matrix))
    torch.testing.assert_close(found, expected[0])
    assert found.data_ptr() == of_matrix.data_ptr()
