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


def test_few_rows_are_held_at_a_time(predictor: Predictor) -> None:
    rows = iter([(i, [1, 2]) for i in range(10_000)])
    next(predictor.in_batches(rows))
    assert len(list(rows)) == 10_000 - module.MAX_BATCH_SIZE


def test_logits_are_those_of_the_requested_position(predictor: Predictor) -> None:
    tokens = torch.randint(0, 300, (3, 10))
    everywhere = predictor.encoder(tokens)
    torch.testing.assert_close(predictor.logits(tokens, [4, 0, 9]), everywhere[torch.arange(3), [4, 0, 9]])
