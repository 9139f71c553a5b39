from typing import Any

import numpy as np
import pytest
import torch

from mlm_dist.errors import UserError
from mlm_dist.inference.embedding import embed, states_after
from mlm_dist.inference.predictor import Predictor

LONG = "The ferry came in under the harbour wall and nobody saw it, unbelievably."


def test_a_vector_is_the_mean_over_the_tokens(predictor: Predictor) -> None:
    ids = predictor.tokenizer.encode("The lamp went out.").astype(np.int64)
    expected = predictor.encoder.last_hidden_states(torch.from_numpy(ids)[None])[0].mean(0).detach()
    vectors = embed(predictor, ["The lamp went out."])
    assert vectors.shape == (1, 16)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors[0], expected, rtol=1e-5)


def test_a_long_text_is_read_block_by_block(predictor: Predictor) -> None:
    ids = torch.from_numpy(predictor.tokenizer.encode(LONG).astype(np.int64))
    assert len(ids) > 32
    states = torch.cat([predictor.encoder.last_hidden_states(block[None])[0] for block in ids.split(16)])
    np.testing.assert_allclose(embed(predictor, [LONG])[0], states.mean(0).detach(), rtol=1e-5)


def test_each_row_is_the_vector_of_its_text(predictor: Predictor) -> None:
    texts = ["The lamp", LONG, "x", "the ferry", "Ned"] * 30
    together = embed(predictor, texts)
    for text, vector in zip(texts[:5], together[:5], strict=True):
        np.testing.assert_allclose(vector, embed(predictor, [text])[0], rtol=1e-5)
    np.testing.assert_array_equal(together[:5], together[-5:])


def test_an_empty_text_has_a_vector_of_zeros(predictor: Predictor) -> None:
    vectors = embed(predictor, ["", "x"])
    assert not vectors[0].any()
    assert vectors[1].any()


def states_of(predictor: Predictor, text: str, layer: int = 2) -> torch.Tensor:
    """The states of the tokens of a text, which is read in blocks of 16."""
    blocks = torch.from_numpy(predictor.tokenizer.encode(text).astype(np.int64)).split(16)
    return torch.cat([states_after(predictor.encoder, block[None], layer)[0] for block in blocks])


@pytest.mark.parametrize("text", ["The lamp", LONG])
def test_weights_grow_with_the_position_in_the_text(predictor: Predictor, text: str) -> None:
    states = states_of(predictor, text)
    expected = np.average(states, 0, weights=np.arange(1, len(states) + 1))
    np.testing.assert_allclose(embed(predictor, [text, "x"], pool="weighted")[0], expected, rtol=1e-5)


@pytest.mark.parametrize("text", ["The lamp", LONG])
def test_cls_is_the_state_of_the_first_token(predictor: Predictor, text: str) -> None:
    expected = states_of(predictor, text)[0]
    np.testing.assert_allclose(embed(predictor, ["x", text], pool="cls")[1], expected, rtol=1e-5)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_each_layer_can_be_pooled(predictor: Predictor, layer: int) -> None:
    vectors = embed(predictor, [LONG], layer=layer)
    np.testing.assert_allclose(vectors[0], states_of(predictor, LONG, layer).mean(0), rtol=1e-5)
    assert np.array_equal(vectors, embed(predictor, [LONG])) == (layer == 2)


def test_normalized_vectors_have_a_length_of_1_unless_they_are_zero(predictor: Predictor) -> None:
    texts = ["x", "", LONG]
    vectors, normalized = embed(predictor, texts), embed(predictor, texts, normalize=True)
    np.testing.assert_allclose(np.linalg.norm(normalized, axis=1), [1, 0, 1], rtol=1e-6)
    np.testing.assert_allclose(normalized * np.linalg.norm(vectors, axis=1)[:, None], vectors, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 3}, "--layer is 3: it must be from 0, the embeddings, to 2"),
        ({"layer": -1}, "--layer is -1: it must be from 0, the embeddings, to 2"),
        ({"pool": "max"}, "--pool is max: it must be mean or cls or weighted"),
    ],
)
def test_an_option_out_of_bounds_is_a_user_error(predictor: Predictor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        embed(predictor, ["x"], **options)
    assert str(caught.value) == message
