import pytest
import torch

from mlm_dist.distributed import Processes
from mlm_dist.inference.predictor import Predictor
from mlm_dist.inference.scoring import Score, score, score_on_all_ranks

TEXTS = ["The lamp went out.", "Zoë saw it.", "x", "The lamp went out.\tNed, unbelievably, did not."]


def expected_score(predictor: Predictor, ids: list[int], masked: dict[int, list[int]]) -> float:
    """The expected score of a text of one block. `masked` lists the positions masked to predict each token."""
    total = 0.0
    for position, target in enumerate(ids):
        seen = [predictor.tokenizer.mask_id if i in masked[position] else token for i, token in enumerate(ids)]
        total += predictor.encoder(torch.tensor([seen]))[0, position].log_softmax(-1)[target].item()
    return total


@pytest.mark.parametrize("text", TEXTS[:3])
def test_a_score_is_the_sum_over_tokens_masked_one_at_a_time(predictor: Predictor, text: str) -> None:
    ids = predictor.tokenizer.encode(text).tolist()
    (found,) = score(predictor, [text], within_word=False)
    assert found.tokens == len(ids) <= 16
    assert found.log_likelihood == pytest.approx(
        expected_score(predictor, ids, {i: [i] for i in range(len(ids))}), rel=1e-5
    )


@pytest.mark.parametrize("text", TEXTS[:3])
def test_within_word_also_masks_the_following_tokens_of_the_word(predictor: Predictor, text: str) -> None:
    masked: dict[int, list[int]] = {}
    for word in predictor.tokenizer.encode_words(text):
        start = len(masked)
        masked |= {position: list(range(position, start + len(word))) for position in range(start, start + len(word))}
    ids = predictor.tokenizer.encode(text).tolist()
    (found,) = score(predictor, [text], within_word=True)
    assert found.log_likelihood == pytest.approx(expected_score(predictor, ids, masked), rel=1e-5)
    if text != "x":
        assert found != score(predictor, [text], within_word=False)[0]


def test_a_score_does_not_depend_on_the_other_texts(predictor: Predictor) -> None:
    together = score(predictor, TEXTS * 20, within_word=False)
    for text, found in zip(TEXTS * 20, together, strict=True):
        (alone,) = score(predictor, [text], within_word=False)
        assert found.tokens == alone.tokens
        assert found.log_likelihood == pytest.approx(alone.log_likelihood, rel=1e-9)


def test_rows_that_texts_have_in_common_are_computed_once(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[tuple[int, ...]] = []
    encode = predictor.encoder.encode

    def recorded(tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        computed.extend(map(tuple, tokens.tolist()))
        return encode(tokens, positions)

    texts = ["The lamp", "The camp", "The lamp"]  # one letter differs, and each letter is a token
    ids = [predictor.tokenizer.encode(text).tolist() for text in texts]
    assert sum(a != b for a, b in zip(ids[0], ids[1], strict=True)) == 1
    alone = [score(predictor, [text], within_word=False)[0] for text in texts]
    monkeypatch.setattr(predictor.encoder, "encode", recorded)
    together = score(predictor, texts, within_word=False)
    assert len(computed) == len(set(computed)) == 2 * len(ids[0]) - 1
    for found, expected in zip(together, alone, strict=True):
        assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("within_word", [False, True])
def test_a_long_text_is_scored_in_windows(predictor: Predictor, within_word: bool) -> None:
    text = "The ferry came in under the harbour wall and nobody saw it, unbelievably."
    words = predictor.tokenizer.encode_words(text)
    ids = [token for word in words for token in word]
    assert len(ids) > 32
    total, index = 0.0, 0
    for word in words:
        for offset in range(len(word)):
            start = min(max(index - 8, 0), len(ids) - 16)
            masks = len(word) - offset if within_word else 1
            seen = [*ids[:index], *[predictor.tokenizer.mask_id] * masks, *ids[index + masks :]][start : start + 16]
            logits = predictor.encoder(torch.tensor([seen]))[0, index - start]
            total += logits.log_softmax(-1)[ids[index]].item()
            index += 1
    (found,) = score(predictor, [text], within_word)
    assert found.log_likelihood == pytest.approx(total, rel=1e-5)


def test_an_empty_text_has_a_score_of_0_over_0_tokens(predictor: Predictor) -> None:
    assert score(predictor, ["", "x"], within_word=False)[0] == (0.0, 0)


@pytest.mark.parametrize("world_size", [1, 3])
def test_every_text_is_scored_by_one_rank_and_all_ranks_get_its_score(
    predictor: Predictor, world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = score(predictor, TEXTS, within_word=False)
    gathered: list[list[Score]] = []

    def all_gather(part: list[Score]) -> list[list[Score]]:
        gathered.append(part)
        return gathered

    def scores_on(rank: int) -> list[Score]:
        processes = Processes("cpu")
        processes.rank, processes.world_size = rank, world_size
        monkeypatch.setattr(processes, "all_gather", all_gather)
        return score_on_all_ranks(lambda texts: score(predictor, texts, within_word=False), TEXTS, processes)

    results = [scores_on(rank) for rank in range(world_size)]
    for found, alone in zip(results[-1], expected, strict=True):  # the last rank gathers all parts
        assert found == pytest.approx(alone, rel=1e-9)
