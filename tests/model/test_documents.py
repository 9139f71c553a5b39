"""Isolated documents are computed as if each were alone in a row."""

from typing import Any

import numpy as np
import pytest
import torch

from mlm_dist.config import Config, DataConfig, MaskingConfig, ModelConfig
from mlm_dist.data.corpus import Corpus
from mlm_dist.data.masking import MaskedBatch, Masker, load_batch, number_documents
from mlm_dist.data.sampler import Selection
from mlm_dist.distributed import Processes
from mlm_dist.evaluation import Validator
from mlm_dist.model import encoder as encoder_module
from mlm_dist.model.encoder import Encoder
from mlm_dist.model.loss import MaskedLoss

END = 298  # of the vocabulary of the sample, whose mask token is 299
CPU = torch.device("cpu")
# Lengths of the documents of each row, with the end token; the last one is cut.
ROWS = [[5, 11, 1, 15], [32], [1, 1, 30], [20, 12]]
T = 32


@pytest.fixture(params=[256, 0], ids=["plain products", "fused attention"])
def encoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Encoder:
    """A model with random parameters, large enough for attention and positions to matter."""
    monkeypatch.setattr(encoder_module, "LONGEST_PLAIN", request.param)
    torch.manual_seed(0)
    model = Encoder(ModelConfig(vocab_size=300, block_size=T, embedding_dim=32, heads=4, blocks=3))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def packed_rows() -> torch.Tensor:
    """Rows of documents, (B, T). Each document but the last of a row ends with the end token."""
    tokens = torch.from_numpy(np.random.default_rng(1).integers(0, END, (len(ROWS), T)))
    for row, lengths in zip(tokens, ROWS, strict=True):
        row[np.cumsum(lengths[:-1]) - 1] = END
    return tokens


def documents_of(tokens: torch.Tensor, corpus: Corpus) -> torch.Tensor:
    return number_documents(tokens, corpus.tokenizer)


def gradients(loss: torch.Tensor, model: Encoder) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_documents_are_counted_in_each_row_and_end_with_the_end_token(corpus: Corpus) -> None:
    tokens = torch.tensor([[7, END, 8, 9, END, END, 1], [END, 7, 8, 9, 1, 2, END]])
    assert documents_of(tokens, corpus).tolist() == [[0, 0, 1, 1, 1, 2, 3], [0, 1, 1, 1, 1, 1, 1]]


def test_hidden_states_are_those_of_the_documents_alone(encoder: Encoder, corpus: Corpus) -> None:
    tokens = packed_rows()
    hidden = encoder.encode(tokens, documents=documents_of(tokens, corpus))
    for row, states, lengths in zip(tokens, hidden, ROWS, strict=True):
        for document, own in zip(row.split(lengths), states.split(lengths), strict=True):
            torch.testing.assert_close(own, encoder.encode(document[None])[0], rtol=0, atol=2e-6)


def test_gradients_are_those_of_the_documents_alone(encoder: Encoder, corpus: Corpus) -> None:
    tokens, loss = packed_rows(), MaskedLoss(encoder, T * len(ROWS))
    masker = Masker.from_config(isolated(masking=MaskingConfig(mask_prob=0.5)), T, corpus.tokenizer, 1, len(ROWS), CPU)
    every = np.arange(len(ROWS))
    batch = masker(tokens, Selection.of_epoch(0, 0, every, every))
    assert (batch.loss_weights.sum(1) > 10).all()
    packed = gradients(loss(**vars(batch)) / batch.loss_weights.sum(), encoder)
    alone = torch.zeros(())
    for row, lengths in enumerate(ROWS):
        for start, length in zip(np.cumsum([0, *lengths]), lengths, strict=False):
            weights = batch.loss_weights[row] * (batch.positions[row] >= start)
            weights = weights * (batch.positions[row] < start + length)
            positions = (batch.positions[row] - int(start)).where(weights > 0, torch.zeros(()).long())
            inputs = batch.inputs[row, start : start + length]
            alone = alone + loss(inputs[None], positions[None], batch.targets[row][None], weights[None])
    expected = gradients(alone / batch.loss_weights.sum(), encoder)
    assert packed.keys() == expected.keys()
    for name, gradient in packed.items():
        scale = max(1.0, float(expected[name].abs().max()))
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-6 * scale, msg=name)


def test_another_document_has_no_influence(encoder: Encoder, corpus: Corpus) -> None:
    tokens = packed_rows()[:1]
    changed = tokens.clone()
    changed[0, 5:15] = 7  # of the second document
    before, after = (encoder.encode(rows, documents=documents_of(tokens, corpus)) for rows in (tokens, changed))
    assert torch.equal(before[:, :5], after[:, :5])
    assert torch.equal(before[:, 16:], after[:, 16:])
    assert not torch.isclose(before[:, 5:16], after[:, 5:16]).all(-1).any()


def test_some_positions_have_the_states_that_they_have_among_all(encoder: Encoder, corpus: Corpus) -> None:
    tokens, positions = packed_rows(), torch.tensor([[0, 4, 5, 31], [3, 2, 1, 0], [0, 1, 2, 31], [19, 20, 21, 0]])
    documents = documents_of(tokens, corpus)
    hidden = encoder.encode(tokens, documents=documents)
    expected = hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1]))
    torch.testing.assert_close(encoder.encode(tokens, positions, documents), expected, rtol=0, atol=2e-6)


def isolated(**changes: Any) -> Config:
    return Config(data=DataConfig(documents="isolated"), **changes)


def test_a_batch_has_documents_only_if_they_are_isolated(corpus: Corpus) -> None:
    every = np.arange(20)
    for config in (Config(), isolated()):
        masker = Masker.from_config(config, T, corpus.tokenizer, 1, 20, CPU)
        batch = load_batch(corpus.rows("train", T), Selection.of_epoch(0, 0, every, every), masker)
        assert (batch.documents is not None) == (config.data.documents == "isolated")
        assert torch.equal(torch.cat([part.inputs for part in batch.micro_batches(7)]), batch.inputs)
        parts = [part.documents for part in batch.micro_batches(7)]
        assert [part is None for part in parts] == [batch.documents is None] * 3


def test_validation_rows_are_computed_in_the_mode_of_the_run(corpus: Corpus) -> None:
    processes = Processes("cpu")
    for config in (Config(), isolated()):
        batches: list[MaskedBatch] = list(Validator(config, corpus, processes, torch.float32).batches())
        assert {batch.documents is not None for batch in batches} == {config.data.documents == "isolated"}
