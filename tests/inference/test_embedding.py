import numpy as np
import torch

from mlm_dist.inference.embedding import embed
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
