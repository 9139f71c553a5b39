from dataclasses import replace

import pytest
import torch

from mlm_dist.inference import predictor as module
from mlm_dist.inference.predictor import Predictor


@pytest.mark.parametrize(
    ("length", "index", "window"),
    [(16, 3, (0, 16)), (5, 4, (0, 5)), (40, 0, (0, 16)), (40, 8, (0, 16)), (40, 20, (12, 28)), (40, 39, (24, 40))],
)
def test_a_window_is_one_block_centred_on_the_token(
    predictor: Predictor, length: int, index: int, window: tuple[int, int]
) -> None:
    assert predictor.window(length, index) == window


def test_batches_contain_rows_of_one_length_and_every_row_once(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_BATCH_SIZE", 4)
    rows = {i: [i] * (1 + i % 3) for i in range(29)}
    found: dict[int, list[int]] = {}
    for keys, tokens in predictor.in_batches(rows.items()):
        assert len(keys) == len(tokens) <= 4
        found |= dict(zip(keys, tokens.tolist(), strict=True))
    assert found == rows


def test_batches_of_short_rows_are_larger_if_asked_for(predictor: Predictor) -> None:
    rows = {i: [i] * (1 if i < 300 else 12) for i in range(500)}
    sizes = [tuple(tokens.shape) for _, tokens in predictor.in_batches(rows.items(), tokens=200)]
    assert sizes == [(200, 1), (64, 12), (64, 12), (64, 12), (100, 1), (8, 12)]


def test_few_rows_are_held_at_a_time(predictor: Predictor) -> None:
    rows = iter([(i, [1, 2]) for i in range(10_000)])
    next(predictor.in_batches(rows))
    assert len(list(rows)) == 10_000 - module.MAX_BATCH_SIZE


@pytest.mark.parametrize(("entries", "softcap"), [(7, None), (1024, None), (7, 2.0)])
def test_log_likelihoods_are_those_of_the_logits(
    predictor: Predictor, entries: int, softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictor.encoder, "config", replace(predictor.encoder.config, logit_softcap=softcap))
    monkeypatch.setitem(module.ENTRIES_AT_ONCE, "cpu", entries)
    tokens = torch.randint(0, 300, (3, 10))
    expected = predictor.encoder(tokens).log_softmax(-1)
    found = predictor.log_likelihoods(tokens, [4, 0, 9], rows=[0, 2, 0, 1], targets=[5, 309, 6, 5])
    torch.testing.assert_close(found, expected[[0, 2, 0, 1], [4, 9, 4, 0], [5, 309, 6, 5]])


def test_logits_are_those_of_the_requested_position(predictor: Predictor) -> None:
    tokens = torch.randint(0, 300, (3, 10))
    everywhere = predictor.encoder(tokens)
    torch.testing.assert_close(predictor.logits(tokens, [4, 0, 9]), everywhere[torch.arange(3), [4, 0, 9]])
