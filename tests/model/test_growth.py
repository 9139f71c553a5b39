"""The rows of new tokens are the means of their pieces, and nothing else of a model changes."""

import io
from dataclasses import replace

import pytest
import torch

from mlm_dist.config import ModelConfig
from mlm_dist.model.encoder import Encoder
from mlm_dist.model.growth import VOCABULARY_PARAMETERS, extend_rows, extend_vocabulary

SMALL = ModelConfig(vocab_size=20, block_size=8, embedding_dim=12, heads=3, blocks=1)
PIECES = {20: [3, 5, 5], 21: [7, 19], 22: [1]}
TOKENS = torch.arange(16).view(2, 8)


def trained(tie_embeddings: bool = True) -> Encoder:
    """An encoder whose biases are not zero."""
    torch.manual_seed(0)
    encoder = Encoder(replace(SMALL, tie_embeddings=tie_embeddings)).eval()
    torch.nn.init.normal_(encoder.output.bias)
    return encoder


def extended_encoder(source: Encoder, entries: int) -> Encoder:
    encoder = Encoder(replace(source.config, vocab_size=entries)).eval()
    encoder.load_state_dict(extend_vocabulary(source.state_dict(), PIECES, entries))
    return encoder


@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_old_logits_stay_and_new_ones_are_the_means_of_their_pieces(tie_embeddings: bool) -> None:
    source = trained(tie_embeddings)
    encoder = extended_encoder(source, 23)
    expected, logits = source(TOKENS), encoder(TOKENS)
    torch.testing.assert_close(logits[..., :20], expected, rtol=0, atol=1e-6)
    for token, ids in PIECES.items():
        torch.testing.assert_close(logits[..., token], expected[..., ids].mean(-1))
        embedding = source.token_embedding.weight[ids].mean(0)
        torch.testing.assert_close(encoder.token_embedding.weight[token], embedding)


@pytest.mark.parametrize("tie_embeddings", [True, False])
@pytest.mark.parametrize("saved", [True, False])
def test_tied_matrices_stay_tied(tie_embeddings: bool, saved: bool) -> None:
    parameters = trained(tie_embeddings).state_dict()
    if saved:
        file = io.BytesIO()
        torch.save(parameters, file)
        parameters = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    extended = extend_vocabulary(parameters, PIECES, 23)
    assert (extended["output.weight"] is extended["token_embedding.weight"]) == tie_embeddings
    assert torch.equal(extended["output.weight"], extended["token_embedding.weight"]) == tie_embeddings


def test_entries_without_a_token_have_the_mean_logit_and_no_more_than_their_share() -> None:
    source = trained()
    expected, logits = source(TOKENS), extended_encoder(source, 30)(TOKENS)
    torch.testing.assert_close(logits[..., 23:], expected.mean(-1, keepdim=True).expand(2, 8, 7))
    assert (logits.softmax(-1)[..., 23:] <= 1 / 27).all()


def test_new_tokens_take_the_entries_that_the_source_had_to_spare() -> None:
    source = trained()
    pieces = {17: [1, 2], 18: [3]}
    extended = extend_vocabulary(source.state_dict(), pieces, 20)
    for name in VOCABULARY_PARAMETERS:
        old = source.state_dict()[name]
        assert extended[name].shape == old.shape
        assert torch.equal(extended[name][:17], old[:17]) and torch.equal(extended[name][19], old[19])
        torch.testing.assert_close(extended[name][17], (old[1] + old[2]) / 2)
        assert torch.equal(extended[name][18], old[3])
    assert extend_vocabulary(source.state_dict(), pieces, 19)["output.weight"].shape == (19, 12)


def test_the_source_and_all_other_parameters_stay() -> None:
    parameters = trained().state_dict()
    before = {name: tensor.clone() for name, tensor in parameters.items()}
    extended = extend_vocabulary(parameters, PIECES, 23)
    assert extended.keys() == before.keys()
    for name, tensor in before.items():
        assert torch.equal(parameters[name], tensor)
        assert torch.equal(extended[name][: len(tensor)], tensor)
        assert name in VOCABULARY_PARAMETERS or extended[name] is parameters[name]


def test_half_precision_is_kept_and_means_are_exact() -> None:
    parameters = {name: tensor.bfloat16() for name, tensor in trained(tie_embeddings=False).state_dict().items()}
    extended = extend_vocabulary(parameters, PIECES, 23)
    for name in VOCABULARY_PARAMETERS:
        assert extended[name].dtype == torch.bfloat16
        assert torch.equal(extended[name][20], parameters[name][[3, 5, 5]].double().mean(0).bfloat16())
    # In fp32, 1e8 + 1 is 1e8.
    grown = extend_rows(torch.tensor([1e8, 1.0, -1e8]), {3: [0, 1, 2]}, 5)
    assert torch.equal(grown[3:], torch.tensor([1 / 3, 1 / 3]))
