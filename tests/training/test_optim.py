import pytest
import torch

from mlm_dist.config import ModelConfig, OptimConfig
from mlm_dist.model.encoder import Encoder
from mlm_dist.training.optim import build_optimizers, learning_rate, set_learning_rate


def rates(**settings: object) -> list[float]:
    config = OptimConfig(lr=1.0, **settings)  # type: ignore[arg-type]
    return [learning_rate(step, 100, config) for step in range(100)]


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "wsd"])
def test_the_warm_up_climbs_in_equal_steps_to_the_peak(schedule: str) -> None:
    assert rates(schedule=schedule, warmup_iters=10)[:10] == pytest.approx([0.1 * step for step in range(1, 11)])


def test_constant_stays_at_the_peak() -> None:
    assert set(rates(schedule="constant", warmup_iters=0)) == {1.0}


def test_linear_falls_in_equal_steps_to_zero() -> None:
    falling = rates(schedule="linear", warmup_iters=20)[20:]
    assert falling == pytest.approx([left / 80 for left in range(80, 0, -1)])


def test_cosine_falls_along_half_a_wave_to_zero() -> None:
    falling = rates(schedule="cosine", warmup_iters=0)
    assert falling[0] == 1.0
    assert falling[50] == pytest.approx(0.5)
    assert falling[25] == pytest.approx(0.5 + 0.5 * 0.5**0.5)
    assert falling[99] < 0.001


def test_cosine_begins_to_fall_after_the_warm_up() -> None:
    falling = rates(schedule="cosine", warmup_iters=20)[20:]
    assert falling[0] == 1.0
    assert falling[40] == pytest.approx(0.5)
    assert falling[79] < 0.001


def test_wsd_is_constant_and_then_falls_linearly_to_zero() -> None:
    course = rates(schedule="wsd", warmup_iters=0, decay_fraction=0.4)
    assert course[:61] == [1.0] * 61
    assert course[60:] == pytest.approx([left / 40 for left in range(40, 0, -1)])


def test_wsd_without_a_last_part_is_constant() -> None:
    assert set(rates(schedule="wsd", warmup_iters=0, decay_fraction=0.0)) == {1.0}


def test_a_warm_up_longer_than_the_run_is_no_fault() -> None:
    for schedule in ("constant", "cosine", "linear", "wsd"):
        assert rates(schedule=schedule, warmup_iters=500)[-1] == pytest.approx(0.2)


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
