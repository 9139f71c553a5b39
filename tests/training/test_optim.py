from typing import Any, Literal

import pytest
import torch

from mlm_dist.config import ModelConfig, OptimConfig
from mlm_dist.model.encoder import Encoder
from mlm_dist.training.optim import build_optimizers, check_state, set_learning_rate


def test_norms_and_biases_are_not_decayed_and_matrices_are() -> None:
    encoder = Encoder(ModelConfig(vocab_size=50))
    (optimizer,) = build_optimizers(encoder, OptimConfig(weight_decay=0.1))
    decay = {id(weight): group["weight_decay"] for group in optimizer.param_groups for weight in group["params"]}
    for name, weight in encoder.named_parameters():
        assert decay[id(weight)] == (0.0 if "norm" in name or name.endswith("bias") else 0.1), name


def test_weights_that_are_not_trained_are_left_alone() -> None:
    layer = torch.nn.Linear(3, 2)
    layer.weight.requires_grad_(False)
    (optimizer,) = build_optimizers(layer, OptimConfig())
    assert [weight for group in optimizer.param_groups for weight in group["params"]] == [layer.bias]


def test_the_optimizer_is_adamw() -> None:
    weight = torch.nn.Linear(3, 2, bias=False)
    before = weight.weight.detach().clone()
    (optimizer,) = build_optimizers(weight, OptimConfig(lr=0.1, weight_decay=0.5))
    weight(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    # Adam's first step is as long as the learning rate, after the weights have shrunk by lr * decay.
    torch.testing.assert_close(weight.weight, before * (1 - 0.1 * 0.5) - 0.1)


def small_encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(ModelConfig(vocab_size=50, block_size=8, embedding_dim=8, heads=2, blocks=2))


@pytest.mark.parametrize("tied", [True, False])
def test_with_muon_every_weight_has_one_optimizer_and_muon_has_the_matrices_of_the_blocks(tied: bool) -> None:
    encoder = Encoder(ModelConfig(vocab_size=50, tie_embeddings=tied))
    optimizers = build_optimizers(encoder, OptimConfig(name="muon"))
    kinds = [
        (id(weight), type(optimizer))
        for optimizer in optimizers
        for g in optimizer.param_groups
        for weight in g["params"]
    ]
    assert len(kinds) == len({weight for weight, _ in kinds}) == len(list(encoder.parameters()))
    for name, weight in encoder.named_parameters():
        matrix_of_a_block = name.startswith("blocks.") and weight.ndim == 2
        assert dict(kinds)[id(weight)] is (torch.optim.Muon if matrix_of_a_block else torch.optim.AdamW), name


def test_muon_follows_the_learning_rate_in_its_own_proportion() -> None:
    optimizers = build_optimizers(small_encoder(), OptimConfig(name="muon", lr=0.001, muon_lr=0.004))
    set_learning_rate(optimizers, 0.0005)
    set_learning_rate(optimizers, 0.00025)
    rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    assert rates == pytest.approx([0.00025, 0.00025, 0.001])


def test_muon_moves_a_matrix_along_its_gradients_directions_all_alike() -> None:
    encoder = small_encoder()
    weight = encoder.blocks[0].feed_forward.expand.weight  # type: ignore[union-attr]
    before = weight.detach().clone()
    for parameter in encoder.parameters():
        parameter.grad = torch.randn_like(parameter)
    for optimizer in build_optimizers(encoder, OptimConfig(name="muon", muon_lr=0.01, weight_decay=0.0)):
        optimizer.step()
    lengths = torch.linalg.svdvals(before - weight.detach()) / (0.01 * 0.2 * 32**0.5)
    # Newton and Schulz's iteration brings singular values near 1, not quite to it.
    assert lengths.min() > 0.5
    assert lengths.max() < 1.3


def change(state: dict[int, dict[str, torch.Tensor]], **changes: torch.Tensor | None) -> dict[int, Any]:
    """The state with values of its first weight changed or left out."""
    return {**state, 0: {name: value for name, value in (state[0] | changes).items() if value is not None}}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_state_of_other_weights_or_of_another_optimizer_is_found(name: Literal["adamw", "muon"]) -> None:
    encoder = Encoder(ModelConfig(vocab_size=50, block_size=8, embedding_dim=16, heads=2, blocks=1))
    optimizer = build_optimizers(encoder, OptimConfig(name=name))[-1]
    check_state(optimizer, {})
    encoder(torch.zeros(1, 5, dtype=torch.long)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()["state"]
    check_state(optimizer, state)
    moment = "momentum_buffer" if name == "muon" else "exp_avg"
    for damaged in (
        change(state, **{moment: None}),
        change(state, **{moment: torch.zeros(3)}),
        change(state, **{moment: state[0][moment].to_sparse()}),
        change(state, more=torch.zeros(())),
        {**state, len(state): state[0]},
        {**state, "0": state[0]},
        {**state, 0: None},
        [],
    ):
        with pytest.raises((AttributeError, TypeError, ValueError)):
            check_state(optimizer, damaged)
