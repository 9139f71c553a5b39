"""Contrastive training pulls the two vectors of a text together, and away from those of other texts."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mlm_dist.config import ModelConfig
from mlm_dist.errors import UserError
from mlm_dist.model.encoder import Encoder
from mlm_dist.training.contrastive import ContrastiveStage, contrast, mean_states, train_contrastively

SHAPE = ModelConfig(vocab_size=50, block_size=16, embedding_dim=16, heads=2, blocks=2, dropout=0.1)
STAGE = ContrastiveStage(steps=40, batch_size=8, lr=3e-3, temperature=0.05, seed=1)


@pytest.fixture
def texts() -> list[list[int]]:
    """Texts of 1 to 16 tokens."""
    generator = np.random.default_rng(0)
    return [generator.integers(0, 50, length).tolist() for length in range(1, 17)]


def build(dropout: float = 0.1) -> Encoder:
    torch.manual_seed(0)
    return Encoder(replace(SHAPE, dropout=dropout))


def test_padding_does_not_change_the_vectors(texts: list[list[int]]) -> None:
    encoder = build().eval()
    for text, vector in zip(texts, mean_states(encoder, texts), strict=True):
        torch.testing.assert_close(vector, encoder.last_hidden_states(torch.tensor([text]))[0].mean(0))


def test_the_loss_is_the_cross_entropy_of_cosines_by_temperature(texts: list[list[int]]) -> None:
    encoder = build(dropout=0.0)
    vectors = mean_states(encoder, texts)
    cosines = torch.stack([F.cosine_similarity(vector[None], vectors) for vector in vectors])
    expected = -(cosines / 0.1).log_softmax(1).diagonal().mean()
    torch.testing.assert_close(contrast(encoder, texts, 0.1), expected)


def test_the_two_vectors_of_a_text_have_different_dropout(texts: list[list[int]]) -> None:
    encoder = build()
    first, second = mean_states(encoder, [*texts, *texts]).chunk(2)
    assert ((first - second).abs().amax(1) > 1e-3).all()


def test_training_with_dropout_lowers_the_loss_without(texts: list[list[int]]) -> None:
    encoder = build().eval()
    before = contrast(encoder, texts, STAGE.temperature).item()
    losses = train_contrastively(encoder, texts, replace(STAGE, batch_size=len(texts)))
    assert len(losses) == STAGE.steps
    assert losses[0] > before + 0.01  # of the same texts, with dropout
    assert not encoder.training
    assert contrast(encoder, texts, STAGE.temperature).item() < before / 4


def test_the_same_seed_gives_the_same_bits(texts: list[list[int]]) -> None:
    trained = [build() for _ in range(3)]
    for encoder, seed in zip(trained, (1, 1, 2), strict=True):
        train_contrastively(encoder, texts, replace(STAGE, steps=3, seed=seed))
    one, same, other = (encoder.token_embedding.weight for encoder in trained)
    assert one.equal(same)
    assert not one.equal(other)


def test_a_loss_that_is_not_finite_is_a_user_error(texts: list[list[int]]) -> None:
    encoder = build()
    with torch.no_grad():
        encoder.position_embedding.weight[0, 0] = torch.inf
    with pytest.raises(UserError, match=r"^the loss of step 1 is not finite: try a smaller --lr than 0.003$"):
        train_contrastively(encoder, texts, STAGE)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "--steps is 0: it must be at least 1"),
        ({"batch_size": 1}, "--batch_size is 1: it must be at least 2"),
        ({"seed": -1}, "--seed is -1: it must be at least 0"),
        ({"lr": 0.0}, "--lr is 0.0: it must be above 0 and at most 1"),
        ({"temperature": float("nan")}, "--temperature is nan: it must be above 0 and at most 1"),
    ],
)
def test_a_setting_out_of_bounds_is_a_user_error(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        replace(STAGE, **values)
    assert str(caught.value) == message
