from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mlm_dist.config import ModelConfig
from mlm_dist.model.encoder import (
    LONGEST_PLAIN,
    Block,
    Encoder,
    FeedForward,
    Head,
    MultiHeadAttention,
)
from mlm_dist.model.masked_model import MaskedModel
from mlm_dist.model.registry import check_parameters

SMALL = ModelConfig(vocab_size=101, block_size=12, embedding_dim=24, heads=3, blocks=2)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def random_tokens(rows: int = 5, length: int = 12) -> torch.Tensor:
    return torch.randint(0, SMALL.entries, (rows, length))


def test_logits_have_an_entry_for_every_token_at_every_position() -> None:
    assert Encoder(SMALL)(random_tokens()).shape == (5, 12, 101)


def test_rows_may_be_shorter_than_the_block_size() -> None:
    assert Encoder(SMALL)(random_tokens(length=7)).shape == (5, 7, 101)


@pytest.mark.parametrize("shape", [{}, {"blocks": 1}, {"block_size": LONGEST_PLAIN + 1}], ids=str)
def test_logits_at_positions_are_those_of_the_whole_row_at_these_positions(shape: dict[str, Any]) -> None:
    config = replace(SMALL, **shape)
    encoder, tokens = Encoder(config).double(), random_tokens(length=config.block_size)
    positions = torch.stack([torch.randperm(config.block_size)[:4] for _ in range(5)])
    positions[1:3, 2:] = positions[1:3, :1]  # repeated positions, as in unused slots
    everywhere = encoder(tokens)
    expected = torch.stack([row[index] for row, index in zip(everywhere, positions, strict=True)])
    actual = encoder(tokens, positions)
    torch.testing.assert_close(actual, expected)
    parameters, loss_weights = list(encoder.parameters()), torch.randn(expected.shape)
    for gradient, expected_gradient in zip(
        torch.autograd.grad((actual * loss_weights).sum(), parameters),
        torch.autograd.grad((expected * loss_weights).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(gradient, expected_gradient)


def test_the_heads_together_equal_the_fused_attention() -> None:
    attention, x = MultiHeadAttention(SMALL).double(), torch.randn(5, 12, 24).double()
    heads = torch.cat([attention.head(index)(x) for index in range(3)], dim=-1)
    torch.testing.assert_close(attention.projection(heads), attention(x))


def test_a_head_shares_the_parameters_of_its_attention() -> None:
    attention = MultiHeadAttention(SMALL)
    head, x = attention.head(1), torch.randn(2, 12, 24)
    before = head(x)
    with torch.no_grad():
        attention.query_key_value.weight.mul_(2)
    assert not torch.allclose(head(x), before)


def test_a_head_follows_the_definition() -> None:
    head, x = Head(24, 8).double(), torch.randn(2, 12, 24).double()
    query, key, value = (x @ layer.weight.T for layer in (head.query, head.key, head.value))
    attention = torch.softmax(query @ key.transpose(1, 2) / 8**0.5, dim=-1)
    torch.testing.assert_close(head.attention_weights(x), attention)
    torch.testing.assert_close(head(x), attention @ value)
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, 12).double())


def test_a_block_adds_attention_and_feed_forward_of_normalized_inputs() -> None:
    block, x = Block(SMALL), torch.randn(2, 12, 24)
    middle = x + block.attention(block.attention_norm(x))
    torch.testing.assert_close(block(x), middle + block.feed_forward(block.feed_forward_norm(middle)))


def test_feed_forward_is_a_relu_between_two_linear_layers() -> None:
    layer, x = FeedForward(SMALL), torch.randn(2, 12, 24)
    hidden = layer.expand(x)
    torch.testing.assert_close(layer(x), layer.contract(hidden * (hidden > 0)))


def test_every_position_sees_every_other_one() -> None:
    encoder, tokens = Encoder(SMALL), random_tokens(rows=1)
    logits = encoder(tokens)
    tokens[0, -1] = (tokens[0, -1] + 1) % SMALL.entries
    assert (encoder(tokens) != logits).any(-1).all()


def test_the_order_of_tokens_matters() -> None:
    encoder, tokens = Encoder(SMALL).double(), random_tokens(rows=1)
    swapped = encoder(tokens.flip(1)).flip(1)
    assert not torch.allclose(encoder(tokens), swapped)


def test_tied_embeddings_are_one_matrix_and_untied_are_two() -> None:
    tied, untied = Encoder(SMALL), Encoder(ModelConfig(**{**vars(SMALL), "tie_embeddings": False}))
    assert tied.output.weight is tied.token_embedding.weight
    assert untied.output.weight is not untied.token_embedding.weight


def test_matrices_are_initialized_with_standard_deviation_0_02_and_biases_with_zero() -> None:
    encoder = Encoder(ModelConfig(vocab_size=2000))
    for name, parameter in encoder.named_parameters():
        if parameter.ndim == 2:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.05), name
            assert parameter.mean().item() == pytest.approx(0, abs=1e-3), name
        elif name.endswith("bias"):
            assert not parameter.any(), name


def test_every_layer_norm_has_an_eps_of_1e_12() -> None:
    norms = [module for module in Encoder(SMALL).modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 2 * SMALL.blocks + 1
    assert {norm.eps for norm in norms} == {1e-12}


def test_an_encoder_needs_a_vocabulary_size() -> None:
    with pytest.raises(ValueError, match=r"model\.vocab_size is null"):
        Encoder(ModelConfig(vocab_size=None))


def test_the_default_model_has_the_expected_number_of_parameters() -> None:
    parameters = sum(parameter.numel() for parameter in Encoder(ModelConfig(vocab_size=50258)).parameters())
    embeddings, block = 50258 * 256 + 64 * 256, 3 * 256**2 + 256**2 + 256 + 8 * 256**2 + 5 * 256 + 4 * 256
    assert parameters == embeddings + 4 * block + 2 * 256 + 50258


def test_the_encoder_applies_embeddings_blocks_norm_and_output_layer() -> None:
    encoder, tokens = Encoder(SMALL).double(), random_tokens(length=7)
    x = encoder.token_embedding(tokens) + encoder.position_embedding.weight[:7]
    for block in encoder.blocks:
        x = block(x)
    torch.testing.assert_close(encoder(tokens), encoder.output(encoder.final_norm(x)))


def is_random(module: nn.Module, x: torch.Tensor) -> bool:
    return not torch.equal(module(x), module(x))


@pytest.mark.parametrize("method", ["encode", "embed", "add_positions"])
@pytest.mark.parametrize("is_mixin", [False, True])
def test_a_subclass_is_trained_by_the_methods_that_it_overrides(method: str, is_mixin: bool) -> None:
    def doubled(self: Encoder, *arguments: Any) -> torch.Tensor:
        result: torch.Tensor = 2 * getattr(Encoder, method)(self, *arguments)
        return result

    bases = (type("Mixin", (), {method: doubled}), Encoder) if is_mixin else (Encoder,)
    encoder = type("Doubled", bases, {} if is_mixin else {method: doubled})(SMALL)
    tokens, positions = random_tokens(), torch.tensor([[1, 3]]).expand(5, -1)
    hidden, weight = encoder.encode_for_loss(tokens, positions, None)
    assert torch.equal(hidden, encoder.encode(tokens, positions))
    assert type(encoder).encode_for_loss is MaskedModel.encode_for_loss
    assert weight is encoder.output.weight


def test_a_subclass_may_have_its_own_way_to_encode_for_the_loss() -> None:
    class Own(Encoder):
        def embed(self, tokens: torch.Tensor, documents: torch.Tensor | None) -> torch.Tensor:
            return 2 * super().embed(tokens, documents)

        def encode_for_loss(
            self, tokens: torch.Tensor, positions: torch.Tensor, documents: torch.Tensor | None
        ) -> tuple[torch.Tensor, torch.Tensor]:
            return self.encode(tokens, positions, documents), 3 * self.output.weight

    encoder = Own(SMALL)
    _, weight = encoder.encode_for_loss(random_tokens(), torch.zeros(5, 1, dtype=torch.int64), None)
    assert torch.equal(weight, 3 * encoder.output.weight)


def test_attention_has_dropout_only_in_training() -> None:
    attention, x = MultiHeadAttention(replace(SMALL, dropout=0.5)), torch.randn(2, 12, 24)
    assert is_random(attention, x)
    assert not is_random(attention.eval(), x)


@pytest.mark.parametrize("zeroed", ["attention.projection", "feed_forward.contract"])
def test_both_parts_of_a_block_have_dropout(zeroed: str) -> None:
    block, x = Block(replace(SMALL, dropout=0.5)), torch.randn(2, 12, 24)
    block.attention.dropout = 0.0
    for parameter in block.get_submodule(zeroed).parameters():
        nn.init.zeros_(parameter)  # so that only the output of the other part is random
    assert is_random(block, x)


def test_the_embeddings_and_the_blocks_have_dropout() -> None:
    encoder, tokens = Encoder(ModelConfig(**{**vars(SMALL), "dropout": 0.5})), random_tokens()
    encoder.dropout.eval()
    assert is_random(encoder, tokens)
    encoder.dropout.train()
    encoder.blocks.eval()
    assert is_random(encoder, tokens)


def test_the_encoder_has_dropout_only_in_training() -> None:
    encoder, tokens = Encoder(ModelConfig(**{**vars(SMALL), "dropout": 0.5})), random_tokens()
    assert not torch.equal(encoder(tokens), encoder(tokens))
    encoder.eval()
    assert torch.equal(encoder(tokens), encoder(tokens))


def test_a_saved_state_dict_gives_the_same_model(tmp_path: Path) -> None:
    encoder, path = Encoder(SMALL), tmp_path / "model.pth"
    torch.save(encoder.state_dict(), path)
    other = Encoder(SMALL)
    other.load_state_dict(torch.load(path, weights_only=True))
    tokens = random_tokens()
    assert torch.equal(encoder(tokens), other(tokens))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_and_cpu_compute_the_same_logits() -> None:
    encoder, tokens = Encoder(SMALL).double(), random_tokens()
    expected = encoder(tokens)
    torch.testing.assert_close(encoder.cuda()(tokens.cuda()).cpu(), expected)


@pytest.mark.parametrize("shape", [{}, {"blocks": 1}, {"tie_embeddings": False}, {"embedding_dim": 48}], ids=str)
def test_parameters_are_counted_without_building_the_model(shape: dict[str, Any]) -> None:
    config = replace(SMALL, **shape)
    assert Encoder.count_parameters(config) == sum(parameter.numel() for parameter in Encoder(config).parameters())


@pytest.mark.parametrize(
    "shape",
    [
        {"blocks": 3},
        {"blocks": 10**15},
        {"embedding_dim": 48},
        {"embedding_dim": 3 * 10**15},
        {"embedding_dim": 3 * 10**30},
        {"block_size": 13},
        {"block_size": 10**15},
        {"vocab_size": 102},
    ],
    ids=str,
)
def test_parameters_of_another_shape_are_refused_without_building_the_model(shape: dict[str, Any]) -> None:
    parameters = Encoder(SMALL).state_dict()
    check_parameters(parameters, SMALL)
    with pytest.raises(ValueError, match=r"shape|blocks"):
        check_parameters(parameters, replace(SMALL, **shape))


@pytest.mark.parametrize(
    "value",
    [
        None,
        1,
        "text",
        torch.zeros(101).long(),
        torch.zeros(101).to_sparse(),
        torch.empty(101, device="meta"),
    ],
)
def test_values_that_are_not_parameters_are_refused(value: object) -> None:
    parameters: dict[str, object] = dict(Encoder(SMALL).state_dict())
    for changed in (
        parameters | {"output.bias": value},
        parameters | {"more": value},
        [value],
        {value: torch.zeros(1)},
    ):
        with pytest.raises(ValueError):
            check_parameters(changed, SMALL)
