"""Each option of the model against a plain implementation in fp64: loss and gradients."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from mlm_dist.config import ModelConfig
from mlm_dist.model import encoder as encoder_module
from mlm_dist.model.activation import inner_widths
from mlm_dist.model.encoder import Encoder, MultiHeadAttention
from mlm_dist.model.loss import MaskedLoss, loss_and_hits
from mlm_dist.model.rotary import rotate, rotation
from tests.model.plain import plain_logits, plain_loss

SMALL = ModelConfig(vocab_size=53, block_size=9, embedding_dim=24, heads=3, blocks=2)
TOGETHER: dict[str, Any] = {"activation": "geglu", "qk_norm": True, "positions": "rope", "logit_softcap": 2.0}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"activation": "relu2"},
    {"activation": "gelu"},
    {"activation": "geglu"},
    {"qk_norm": True},
    {"positions": "rope"},
    {"logit_softcap": 2.0},
    TOGETHER,
    TOGETHER | {"tie_embeddings": False, "blocks": 1},
]


def random_encoder(**options: Any) -> Encoder:
    """An encoder in fp64 whose parameters are so large that everything matters."""
    torch.manual_seed(0)
    encoder = Encoder(replace(SMALL, **options)).double()
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.5)
    return encoder


def random_batch() -> dict[str, Any]:
    torch.manual_seed(1)
    return {
        "inputs": torch.randint(53, (4, 9)),
        "positions": torch.stack([torch.randperm(9)[:3] for _ in range(4)]),
        "targets": torch.randint(53, (4, 3)),
        "loss_weights": torch.rand(4, 3, dtype=torch.float64),
    }


DOCUMENTS = torch.tensor([[0] * 9, [0, 0, 0, 1, 1, 1, 1, 2, 2], [0, 1, 1, 1, 1, 1, 1, 1, 1], [0] * 5 + [1] * 4])


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["joined", "isolated"])
@pytest.mark.parametrize("longest_plain", [256, 0], ids=["plain products", "fused attention"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_loss_and_gradients_are_those_of_the_plain_implementation(
    options: dict[str, Any], longest_plain: int, documents: torch.Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder_module, "LONGEST_PLAIN", longest_plain)
    encoder, batch = random_encoder(**options), random_batch() | {"documents": documents}
    parameters = dict(encoder.named_parameters())
    tied = {"output.weight": parameters["token_embedding.weight"]} | parameters
    expected = plain_loss(tied, encoder.config, **batch)
    actual = MaskedLoss(encoder, 12)(**batch)
    torch.testing.assert_close(actual, expected)
    gradients = torch.autograd.grad(actual, list(parameters.values()))
    for name, gradient, expected_gradient in zip(
        parameters, gradients, torch.autograd.grad(expected, list(parameters.values())), strict=True
    ):
        assert expected_gradient.any(), name
        torch.testing.assert_close(gradient, expected_gradient, msg=name)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_parameters_are_counted_by_formula(options: dict[str, Any]) -> None:
    encoder = random_encoder(**options)
    assert Encoder.count_parameters(encoder.config) == sum(parameter.numel() for parameter in encoder.parameters())
    hidden = sum(matrix.numel() for matrix in encoder.hidden_matrices())
    assert Encoder.count_in_hidden_matrices(encoder.config) == hidden


@pytest.mark.parametrize("width", [6, 24, 50, 256, 768, 1024])
def test_geglu_has_as_many_parameters_up_to_rounding(width: int) -> None:
    widths = inner_widths(ModelConfig(embedding_dim=width, heads=1, activation="geglu"))
    assert widths.expanded == 2 * widths.contracted
    assert widths.contracted % 8 == 0
    assert abs(widths.contracted - 8 * width / 3) <= 4


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_bf16_is_near_fp64(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    encoder, batch = Encoder(replace(SMALL, **options)), random_batch()
    expected = MaskedLoss(encoder.double(), 12)(**batch)
    encoder.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = MaskedLoss(encoder, 12)(**(batch | {"loss_weights": batch["loss_weights"].float()}))
    actual.backward()
    assert actual.item() == pytest.approx(expected.item(), rel=2e-3)
    assert {parameter.grad.dtype for parameter in encoder.parameters() if parameter.grad is not None} == {torch.float32}


@pytest.mark.parametrize("options", [{"qk_norm": True}, {"positions": "rope"}, TOGETHER], ids=str)
def test_the_heads_together_equal_the_fused_attention(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    attention, x = MultiHeadAttention(replace(SMALL, **options)).double(), torch.randn(5, 9, 24).double()
    for parameter in attention.parameters():
        nn.init.normal_(parameter)
    row_rotation = rotation(9, 8, x) if attention.is_rotary else None
    heads = torch.cat([attention.head(index)(x) for index in range(3)], dim=-1)
    torch.testing.assert_close(attention.projection(heads), attention(x, row_rotation=row_rotation))


def test_rotated_products_depend_on_the_distance_alone() -> None:
    query, key = torch.randn(2, 1, 8, dtype=torch.float64).expand(2, 40, 8)
    row_rotation = rotation(40, 8, query)
    products = rotate(query[None], row_rotation)[0] @ rotate(key[None], row_rotation)[0].T
    for distance in (-17, -1, 0, 3, 30):
        along = products.diagonal(distance)
        torch.testing.assert_close(along, along[:1].expand_as(along))
    assert products[0].std() > 0.1


def test_rotary_rows_may_be_longer_than_the_block_size() -> None:
    assert random_encoder(positions="rope")(torch.zeros(1, 30, dtype=torch.int64)).shape == (1, 30, 53)


def test_a_soft_cap_bounds_the_logits_of_the_model_and_of_its_evaluation() -> None:
    capped, batch = random_encoder(logit_softcap=2.0), random_batch()
    free = random_encoder()
    logits = capped(batch["inputs"], batch["positions"])
    torch.testing.assert_close(logits, 2 * torch.tanh(free(batch["inputs"], batch["positions"]) / 2))
    hidden = capped.encode(batch["inputs"], batch["positions"])
    loss, *_ = loss_and_hits(hidden, capped.output, batch["targets"], batch["loss_weights"].float(), 2.0)
    assert loss.item() == pytest.approx(MaskedLoss(capped, 12)(**batch).item(), rel=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_initial_standard_deviations(tied: bool) -> None:
    config = ModelConfig(vocab_size=3000, tie_embeddings=tied, embedding_std=0.5, output_std=0.02 if tied else 0.1)
    encoder = Encoder(config)
    stds = {name: parameter.std().item() for name, parameter in encoder.named_parameters() if parameter.ndim == 2}
    expected = {"token_embedding.weight": 0.5, "position_embedding.weight": 0.5, "output.weight": 0.1}
    assert stds == {name: pytest.approx(expected.get(name, 0.02), rel=0.05) for name in stds}
    assert ("output.weight" in stds) != tied


def test_an_output_layer_of_zeros_predicts_all_tokens_alike() -> None:
    encoder = Encoder(replace(SMALL, tie_embeddings=False, output_std=0.0))
    assert not encoder(torch.zeros(1, 9, dtype=torch.int64)).any()


def test_the_initial_standard_deviation_of_queries_and_keys() -> None:
    torch.manual_seed(0)
    others = dict(Encoder(SMALL).named_parameters())
    torch.manual_seed(0)
    for name, parameter in Encoder(replace(SMALL, query_key_std=0.04)).named_parameters():  # all other values stay
        expected = others[name].detach().clone()
        if name.endswith("query_key_value.weight"):
            expected[: 2 * SMALL.embedding_dim] *= 2
        assert torch.equal(parameter, expected), name


@pytest.mark.parametrize("activation", ["relu", "geglu"])
def test_projections_of_zeros_make_every_block_the_identity(activation: Any) -> None:
    encoder = Encoder(replace(SMALL, zero_init_projections=True, activation=activation))
    x = torch.randn(2, 9, 24)
    assert all(torch.equal(block(x), x) for block in encoder.blocks)
    torch.manual_seed(0)
    others = dict(Encoder(replace(SMALL, activation=activation)).named_parameters())
    torch.manual_seed(0)
    for name, parameter in Encoder(encoder.config).named_parameters():  # all other initial values stay
        is_projection = name.endswith(("attention.projection.weight", "feed_forward.contract.weight"))
        assert torch.equal(parameter, torch.zeros_like(parameter) if is_projection else others[name]), name


def test_the_plain_implementation_computes_the_logits_of_the_default_model() -> None:
    encoder, tokens = random_encoder(), random_batch()["inputs"]
    parameters = dict(encoder.state_dict())
    logits = plain_logits(parameters, SMALL, tokens[0], torch.zeros(9, dtype=torch.int64))
    torch.testing.assert_close(encoder(tokens)[0], logits)
