import pytest
import torch

from mlm_dist.inference import predictor as module
from mlm_dist.inference.predictor import Predictor


@pytest.mark.parametrize(
    ("length", "index", "seen"),
    [(16, 3, (0, 16)), (5, 4, (0, 5)), (40, 0, (0, 16)), (40, 8, (0, 16)), (40, 20, (12, 28)), (40, 39, (24, 40))],
)
def test_a_window_is_as_long_as_the_block_with_the_token_in_its_middle(
    predictor: Predictor, length: int, index: int, seen: tuple[int, int]
) -> None:
    assert predictor.window(length, index) == seen


def test_batches_hold_rows_of_one_length_and_every_row_once(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROWS_AT_A_TIME", 4)
    rows = {number: [number] * (1 + number % 3) for number in range(29)}
    found: dict[int, list[int]] = {}
    for keys, tokens in predictor.in_batches(rows.items()):
        assert len(keys) == len(tokens) <= 4
        found |= dict(zip(keys, tokens.tolist(), strict=True))
    assert found == rows


def test_few_rows_wait_at_a_time(predictor: Predictor) -> None:
    taken = []
    batches = predictor.in_batches((taken.append(number) or number, [1, 2]) for number in range(10_000))  # type: ignore[func-returns-value]
    next(batches)
    assert len(taken) == module.ROWS_AT_A_TIME


def test_logits_are_those_of_the_place_asked_for(predictor: Predictor) -> None:
    tokens = torch.randint(0, 300, (3, 10))
    everywhere = predictor.encoder(tokens)
    torch.testing.assert_close(predictor.logits(tokens, [4, 0, 9]), everywhere[torch.arange(3), [4, 0, 9]])
