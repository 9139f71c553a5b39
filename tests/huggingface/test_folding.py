"""A model computes the same after the parameters that an `Encoder` lacks have been folded into others."""

from collections.abc import Callable

import pytest
import torch
from transformers import MegatronBertConfig, MegatronBertForMaskedLM

from mlm_dist.config import ModelConfig
from mlm_dist.huggingface.folding import fold_body, fold_head, is_identity
from mlm_dist.huggingface.megatron_bert import convert_parameters, restore_parameters
from mlm_dist.model.encoder import Encoder

SHAPE = ModelConfig(vocab_size=50, block_size=12, embedding_dim=32, heads=4, blocks=2)
ATTENTION = "bert.encoder.layer.1.attention"
QUERY, KEY, VALUE = (f"{ATTENTION}.self.{name}.bias" for name in ("query", "key", "value"))
SEGMENTS = "bert.embeddings.token_type_embeddings.weight"
SCALE, SHIFT = "bert.encoder.ln.weight", "bert.encoder.ln.bias"
DENSE, OFFSET = "cls.predictions.transform.dense.weight", "cls.predictions.transform.dense.bias"
TOKENS = torch.randint(0, 50, (6, 12), generator=torch.Generator().manual_seed(0))

Parameters = dict[str, torch.Tensor]


@pytest.fixture
def parameters() -> Parameters:
    """The parameters of an export, all of which differ from their initial values."""
    torch.manual_seed(0)
    encoder = Encoder(SHAPE)
    for parameter in encoder.parameters():
        parameter.data.add_(torch.randn(parameter.shape), alpha=0.2)
    return convert_parameters(encoder.state_dict(), SHAPE)


def randomize(parameters: Parameters, *names: str, scale: float = 0.1) -> None:
    """Add random numbers to some parameters."""
    generator = torch.Generator().manual_seed(1)
    for name in names:
        parameters[name] = parameters[name] + scale * torch.randn(parameters[name].shape, generator=generator)


def encoder_of(parameters: Parameters) -> Encoder:
    encoder = Encoder(SHAPE).eval()
    encoder.load_state_dict(restore_parameters(parameters, SHAPE))
    return encoder


def in_transformers(parameters: Parameters) -> MegatronBertForMaskedLM:
    config = MegatronBertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        hidden_act="relu", max_position_embeddings=12, pad_token_id=0,
    )  # fmt: skip
    model: MegatronBertForMaskedLM = MegatronBertForMaskedLM(config).eval()
    assert model.load_state_dict(parameters, strict=False).unexpected_keys == []
    model.tie_weights()
    return model


@torch.no_grad()
def difference(parameters: Parameters, folded: Parameters) -> float:
    """The largest difference of a logit before and after folding, as a fraction of their standard deviation."""
    expected: torch.Tensor = in_transformers(parameters)(TOKENS).logits
    largest: torch.Tensor = (encoder_of(folded)(TOKENS) - expected).abs().max()
    return (largest / expected.std()).item()


@pytest.mark.parametrize("names", [[SEGMENTS], [QUERY], [KEY], [VALUE], [SEGMENTS, QUERY, KEY, VALUE]], ids=len)
def test_the_logits_are_the_same_after_folding_the_body(names: list[str], parameters: Parameters) -> None:
    randomize(parameters, *names)
    folded = dict(parameters)
    assert fold_body(folded, SHAPE) < 1e-5
    if names != [KEY]:
        assert difference(parameters, parameters) > 1e-2
    assert difference(parameters, folded) < 1e-4


def test_an_export_is_not_touched(parameters: Parameters) -> None:
    folded = dict(parameters)
    assert fold_body(folded, SHAPE) == 0.0
    assert all(folded[name] is parameters[name] for name in parameters)
    assert is_identity(parameters, SHAPE)


@pytest.mark.parametrize("name", [SCALE, SHIFT, DENSE, OFFSET])
def test_any_change_of_the_layers_before_the_transform_is_noticed(name: str, parameters: Parameters) -> None:
    parameters[name].view(-1)[5] += 1e-5
    assert not is_identity(parameters, SHAPE)


def fold(parameters: Parameters) -> tuple[float, Parameters]:
    """Fold the head on the states of many tokens."""
    folded, tokens = dict(parameters), torch.randint(0, 50, (100, 12), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        drift = fold_head(folded, SHAPE, encoder_of(parameters).last_hidden_states(tokens).flatten(0, 1))
    return drift, folded


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p[SCALE].mul_(1.5),
        lambda p: (p[DENSE].mul_(3), p[OFFSET].mul_(3)),
        lambda p: p[OFFSET].add_(2),
    ],
)
def test_a_change_that_the_layer_norm_removes_is_no_drift(
    change: Callable[[Parameters], object], parameters: Parameters
) -> None:
    change(parameters)
    drift, folded = fold(parameters)
    assert drift < 1e-6
    assert difference(parameters, folded) < 1e-4


def test_a_shift_is_folded_but_for_its_effect_on_the_variance(parameters: Parameters) -> None:
    randomize(parameters, SHIFT)
    drift, folded = fold(parameters)
    assert difference(parameters, folded) < 0.3 * difference(parameters, parameters)
    assert drift < 0.05


def test_the_drift_is_the_fraction_of_the_output_that_is_lost(parameters: Parameters) -> None:
    randomize(parameters, DENSE, scale=0.02)
    drift, folded = fold(parameters)
    scaled = dict(parameters)
    scaled[DENSE], scaled[OFFSET] = 4 * scaled[DENSE], 4 * scaled[OFFSET]
    assert fold(scaled)[0] == pytest.approx(drift, rel=1e-6)
    assert 0.5 < drift / (0.02 * 32**0.5) < 1  # a mixture of all channels, but for what a shift restores
    assert 0 < difference(parameters, folded) <= difference(parameters, parameters)


def test_states_that_do_not_vary_keep_the_scale(parameters: Parameters) -> None:
    randomize(parameters, SHIFT)
    folded = dict(parameters)
    fold_head(folded, SHAPE, torch.randn(1, 32, generator=torch.Generator().manual_seed(0)).expand(5, -1))
    norm = "cls.predictions.transform.LayerNorm.weight"
    torch.testing.assert_close(folded[norm], parameters[norm])
