from typing import Any, Literal

import pytest
import torch
from torch import nn

from mlm_dist.config import ModelConfig, OptimConfig
from mlm_dist.model.encoder import Encoder
from mlm_dist.model.masked_model import MaskedModel
from mlm_dist.training.optim import build_optimizers, check_state, set_learning_rate


def test_matrices_have_weight_decay_and_norms_and_biases_have_none() -> None:
    encoder = Encoder(ModelConfig(vocab_size=50))
    (optimizer,) = build_optimizers(encoder, OptimConfig(weight_decay=0.1))
    decay = {id(parameter): group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in encoder.named_parameters():
        assert decay[id(parameter)] == (0.0 if "norm" in name or name.endswith("bias") else 0.1), name


class OutputLayer(MaskedModel):
    """The smallest model: an output layer, applied to the input."""

    def __init__(self) -> None:
        super().__init__()
        self.output = nn.Linear(3, 2)

    def encode(self, tokens: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return tokens


def test_frozen_parameters_are_not_optimized() -> None:
    model = OutputLayer()
    model.output.weight.requires_grad_(False)
    (optimizer,) = build_optimizers(model, OptimConfig())
    assert [parameter for group in optimizer.param_groups for parameter in group["params"]] == [model.output.bias]


def test_the_optimizer_is_adamw() -> None:
    model = OutputLayer()
    before = model.output.weight.detach().clone()
    (optimizer,) = build_optimizers(model, OptimConfig(lr=0.1, weight_decay=0.5))
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    # Weight decay shrinks the matrix by lr * weight_decay. Then Adam's first step changes each element by lr.
    torch.testing.assert_close(model.output.weight, before * (1 - 0.1 * 0.5) - 0.1)


def small_encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(ModelConfig(vocab_size=50, block_size=8, embedding_dim=8, heads=2, blocks=2))


@pytest.mark.parametrize("tied", [True, False])
def test_muon_optimizes_the_matrices_of_the_blocks_and_adamw_the_rest(tied: bool) -> None:
    encoder = Encoder(ModelConfig(vocab_size=50, tie_embeddings=tied))
    optimizers = build_optimizers(encoder, OptimConfig(name="muon"))
    kinds = [
        (id(parameter), type(optimizer))
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    assert len(kinds) == len(dict(kinds)) == len(list(encoder.parameters()))
    for name, parameter in encoder.named_parameters():
        in_block = name.startswith("blocks.") and parameter.ndim == 2
        assert dict(kinds)[id(parameter)] is (torch.optim.Muon if in_block else torch.optim.AdamW), name


def test_the_learning_rate_of_muon_keeps_its_ratio_to_that_of_adamw() -> None:
    optimizers = build_optimizers(small_encoder(), OptimConfig(name="muon", lr=0.001, muon_lr=0.004))
    set_learning_rate(optimizers, 0.0005)
    set_learning_rate(optimizers, 0.00025)
    rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    assert rates == pytest.approx([0.00025, 0.00025, 0.001])


def test_muon_takes_equal_steps_in_all_directions_of_the_gradient() -> None:
    encoder = small_encoder()
    matrix = encoder.get_parameter("blocks.0.feed_forward.expand.weight")
    before = matrix.detach().clone()
    for parameter in encoder.parameters():
        parameter.grad = torch.randn_like(parameter)
    for optimizer in build_optimizers(encoder, OptimConfig(name="muon", muon_lr=0.01, weight_decay=0.0)):
        optimizer.step()
    singular_values = torch.linalg.svdvals(before - matrix.detach()) / (0.01 * 0.2 * 32**0.5)
    # The Newton-Schulz iteration brings the singular values near 1, not exactly to 1.
    assert singular_values.min() > 0.5
    assert singular_values.max() < 1.3


def change(state: dict[int, dict[str, torch.Tensor]], **changes: torch.Tensor | None) -> dict[int, Any]:
    """The state with values of the first parameter replaced, or removed if None."""
    return {**state, 0: {name: value for name, value in (state[0] | changes).items() if value is not None}}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_state_of_other_parameters_or_of_another_optimizer_is_refused(name: Literal["adamw", "muon"]) -> None:
    encoder = Encoder(ModelConfig(vocab_size=50, block_size=8, embedding_dim=16, heads=2, blocks=1))
    optimizer = build_optimizers(encoder, OptimConfig(name=name))[-1]
    check_state(optimizer, {})
    encoder(torch.zeros(1, 5, dtype=torch.long)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()["state"]
    check_state(optimizer, state)
    moment = "momentum_buffer" if name == "muon" else "exp_avg"
    damaged_states: list[object] = [
        change(state, **{moment: None}),
        change(state, **{moment: torch.zeros(3)}),
        change(state, **{moment: state[0][moment].to_sparse()}),
        change(state, more=torch.zeros(())),
        {**state, len(state): state[0]},
        {**state, "0": state[0]},
        {**state, 0: None},
        [],
    ]
    for damaged in damaged_states:
        with pytest.raises((AttributeError, TypeError, ValueError)):
            check_state(optimizer, damaged)
