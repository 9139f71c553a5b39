from collections.abc import Sequence

import pytest
import torch

from mlm_dist.errors import UserError
from mlm_dist.inference import filling
from mlm_dist.inference.filling import fill, fill_all
from mlm_dist.inference.predictor import Predictor

TEXT = "The lamp [MASK] in the [MASK]."


def expected_probabilities(predictor: Predictor, ids: list[int], position: int) -> torch.Tensor:
    """Expected probabilities of all tokens except the special ones, at one position of a text of one block."""
    logits: torch.Tensor = predictor.encoder(torch.tensor([ids])).detach()[0, position]
    logits = logits[: predictor.tokenizer.vocab_size]
    logits[[predictor.tokenizer.mask_id, predictor.tokenizer.end_id]] = -torch.inf
    return logits.softmax(-1)


def encode(predictor: Predictor, text: str) -> tuple[list[int], list[int]]:
    """The token ids of a text, and the positions of its masks."""
    ids = predictor.tokenizer.encode_with_masks(text)
    return ids, [position for position, token in enumerate(ids) if token == predictor.tokenizer.mask_id]


def test_each_mask_gets_its_most_likely_tokens_in_order(predictor: Predictor) -> None:
    ids, positions = encode(predictor, TEXT)
    masks = fill(predictor, TEXT, 4).masks
    for position, candidates in zip(positions, masks, strict=True):
        best = expected_probabilities(predictor, ids, position).topk(4)
        assert [candidate.probability for candidate in candidates] == pytest.approx(best.values.tolist(), rel=1e-5)
        assert [candidate.text for candidate in candidates] == [
            predictor.tokenizer.decode([token]) for token in best.indices.tolist()
        ]


def test_all_candidates_together_have_probability_1_and_no_special_token(predictor: Predictor) -> None:
    (candidates,) = fill(predictor, "The [MASK]", 10_000).masks
    assert len(candidates) == 298  # of 310 that the encoder has
    assert sum(candidate.probability for candidate in candidates) == pytest.approx(1)
    assert not {"[MASK]", "<|endoftext|>"} & {candidate.text for candidate in candidates}


def test_the_space_before_a_mask_is_part_of_the_masked_token(predictor: Predictor) -> None:
    assert fill(predictor, "The [MASK]", 5) == fill(predictor, "The[MASK]", 5)


def test_beam_search_finds_the_same_two_token_words_as_trying_all_pairs(predictor: Predictor) -> None:
    ids, positions = encode(predictor, "The [MASK][MASK] door")
    first = expected_probabilities(predictor, ids, positions[0])
    pairs = torch.zeros(len(first), len(first), dtype=torch.float64)
    for token, probability in enumerate(first.tolist()):
        if probability:
            known = [*ids]
            known[positions[0]] = token
            pairs[token] = probability * expected_probabilities(predictor, known, positions[1])
    best = pairs.flatten().topk(5)
    (candidates,) = fill(predictor, "The [MASK*2] door", 298).masks  # wide enough to keep every first token
    assert [word.probability for word in candidates[:5]] == pytest.approx(best.values.tolist(), rel=1e-5)
    assert [word.text for word in candidates[:5]] == [
        predictor.tokenizer.decode(divmod(pair, len(first))) for pair in best.indices.tolist()
    ]


def test_a_word_of_one_token_equals_a_single_mask(predictor: Predictor) -> None:
    assert fill(predictor, "The [MASK*1].", 3) == fill(predictor, "The [MASK].", 3)


def test_words_of_several_tokens_combine_with_single_masks(predictor: Predictor) -> None:
    filling = fill(predictor, "The [MASK*3] [MASK] door", 2)
    assert [len(mask) for mask in filling.masks] == [2, 2]
    alone = fill(predictor, "The [MASK][MASK][MASK] [MASK] door", 2)
    assert filling.masks[1] == alone.masks[3]
    assert filling.text == alone.text


def test_masks_are_filled_in_order_of_confidence(predictor: Predictor) -> None:
    ids, positions = encode(predictor, "[MASK] went [MASK] the [MASK] stairs")
    total, order = 1.0, []
    while positions:
        best = {position: expected_probabilities(predictor, ids, position).max(0) for position in positions}
        most_confident = max(best, key=lambda position: best[position].values.item())
        total *= best[most_confident].values.item()
        ids[most_confident] = int(best[most_confident].indices)
        positions.remove(most_confident)
        order.append(most_confident)
    filling = fill(predictor, "[MASK] went [MASK] the [MASK] stairs", 1)
    assert filling.text == predictor.tokenizer.decode(ids)
    assert filling.probability == pytest.approx(total, rel=1e-5)
    assert order != sorted(order)  # otherwise filling from left to right would pass too


def test_filling_leaves_the_rest_of_the_text_unchanged(predictor: Predictor) -> None:
    text = "The lamp\n\n  stood — «here» [MASK] 🙂 there."
    filled = fill(predictor, text, 1)
    assert filled.text == text.replace(" [MASK]", filled.masks[0][0].text)


def test_a_mask_in_a_long_text_is_predicted_from_a_window_around_it(predictor: Predictor) -> None:
    text = "Aunt [MASK] went up the stairs and came down again and saw the [MASK] from the window of the hall."
    ids, positions = encode(predictor, text)
    assert positions[0] < 8
    assert 8 < positions[1] < len(ids) - 8
    starts, masks = (0, positions[1] - 8), fill(predictor, text, 3).masks
    for position, start, candidates in zip(positions, starts, masks, strict=True):
        expected = expected_probabilities(predictor, ids[start : start + 16], position - start).topk(3).values
        assert [candidate.probability for candidate in candidates] == pytest.approx(expected.tolist(), rel=1e-5)


def test_filling_a_long_text_reads_the_tokens_filled_nearby(predictor: Predictor) -> None:
    mask = predictor.tokenizer.mask_id
    far, near = [mask, *[5] * 40, mask], [mask, *[5] * 3, mask]
    alone = [fill_all(predictor, [mask, *[5] * 40])[1], fill_all(predictor, [*[5] * 40, mask])[1]]
    assert fill_all(predictor, far)[1] == pytest.approx(sum(alone), rel=1e-5)
    filled, _ = fill_all(predictor, near)
    assert mask not in filled


@pytest.mark.parametrize(("text", "message"), [("no mask", r"no \[MASK\]"), ("a [MASK*0]", "must be at least 1")])
def test_a_text_without_masks_is_refused(predictor: Predictor, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fill(predictor, text, 3)


@pytest.mark.parametrize(
    ("mark", "spelling"),
    [
        ("[mask]", "[MASK]"),
        ("<mask>", "[MASK]"),
        ("[MASK ]", "[MASK]"),
        ("[ Mask ]", "[MASK]"),
        ("{{mask}}", "[MASK]"),
        ("[mask*3]", "[MASK*3]"),
        ("[MASK 3]", "[MASK*3]"),
        ("<mask:3>", "[MASK*3]"),
    ],
)
def test_the_error_corrects_a_misspelt_mask(predictor: Predictor, mark: str, spelling: str) -> None:
    with pytest.raises(UserError) as caught:
        fill(predictor, f"The {mark} went out.", 3)
    message = f"the text contains no [MASK]; write {spelling} instead of {mark}: The {mark} went out."
    assert str(caught.value) == message
    assert mark in fill(predictor, f"The [MASK] of {mark}.", 3).text


def test_a_word_longer_than_the_context_window_is_refused(predictor: Predictor) -> None:
    assert fill(predictor, "a [MASK*016]", 1).text.startswith("a")
    for size in ("17", "99999999999999999999", "9" * 5000):
        with pytest.raises(UserError, match=r"n in \[MASK\*n\] must be at most 16"):
            fill(predictor, f"a [MASK*{size}]", 1)


def test_the_candidates_for_a_word_of_several_tokens_are_limited(predictor: Predictor) -> None:
    with pytest.raises(UserError, match="--top is 1000000000: it must be at most 1000 for a word of several tokens"):
        fill(predictor, "a [MASK*2]", 10**9)


def test_distant_masks_are_predicted_only_once(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    original = filling.log_probabilities

    def count(predictor: Predictor, queries: Sequence[tuple[list[int], int]]) -> torch.Tensor:
        counts.append(len(queries))
        return original(predictor, queries)

    monkeypatch.setattr(filling, "log_probabilities", count)
    mask = predictor.tokenizer.mask_id
    fill_all(predictor, [mask, *[5] * 40, mask, *[5] * 40, mask])
    assert counts == [3, 0, 0]
    counts.clear()
    fill_all(predictor, [mask, 5, mask, 5, mask])
    assert counts == [3, 2, 1]
