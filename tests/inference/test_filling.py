from collections.abc import Sequence

import pytest
import torch

from mlm_dist.errors import UserError
from mlm_dist.inference import filling
from mlm_dist.inference.filling import fill, fill_together
from mlm_dist.inference.predictor import Predictor

TEXT = "The lamp [MASK] in the [MASK]."


def plain(predictor: Predictor, ids: list[int], place: int) -> torch.Tensor:
    """The definition: probabilities of all tokens but the special ones, for one place of a text of one block."""
    logits = predictor.encoder(torch.tensor([ids]))[0, place, : predictor.tokenizer.vocab_size].detach()
    logits[[predictor.tokenizer.mask_id, predictor.tokenizer.end_id]] = -torch.inf
    return logits.softmax(-1)


def encode(predictor: Predictor, text: str) -> tuple[list[int], list[int]]:
    """Token ids of a text, and the places of its masks."""
    ids = predictor.tokenizer.encode_with_masks(text)
    return ids, [place for place, token in enumerate(ids) if token == predictor.tokenizer.mask_id]


def test_each_mask_gets_its_likeliest_tokens_in_order(predictor: Predictor) -> None:
    ids, places = encode(predictor, TEXT)
    masks = fill(predictor, TEXT, 4).masks
    for place, candidates in zip(places, masks, strict=True):
        best = plain(predictor, ids, place).topk(4)
        assert [candidate.probability for candidate in candidates] == pytest.approx(best.values.tolist(), rel=1e-5)
        assert [candidate.text for candidate in candidates] == [
            predictor.tokenizer.decode([token]) for token in best.indices.tolist()
        ]


def test_all_candidates_together_have_probability_1_and_no_special_token(predictor: Predictor) -> None:
    (candidates,) = fill(predictor, "The [MASK]", 10_000).masks
    assert len(candidates) == 298  # of 310 that the encoder has
    assert sum(candidate.probability for candidate in candidates) == pytest.approx(1)
    assert not {"[MASK]", "<|endoftext|>"} & {candidate.text for candidate in candidates}


def test_the_space_before_a_mask_is_part_of_the_hidden_token(predictor: Predictor) -> None:
    assert fill(predictor, "The [MASK]", 5) == fill(predictor, "The[MASK]", 5)


def test_a_word_of_two_tokens_is_found_as_by_trying_all_pairs(predictor: Predictor) -> None:
    ids, places = encode(predictor, "The [MASK][MASK] door")
    first = plain(predictor, ids, places[0])
    pairs = torch.zeros(len(first), len(first), dtype=torch.float64)
    for token, probability in enumerate(first.tolist()):
        if probability:
            known = [*ids]
            known[places[0]] = token
            pairs[token] = probability * plain(predictor, known, places[1])
    best = pairs.flatten().topk(5)
    (candidates,) = fill(predictor, "The [MASK*2] door", 298).masks  # so wide a beam misses no first token
    assert [word.probability for word in candidates[:5]] == pytest.approx(best.values.tolist(), rel=1e-5)
    assert [word.text for word in candidates[:5]] == [
        predictor.tokenizer.decode(divmod(pair, len(first))) for pair in best.indices.tolist()
    ]


def test_a_word_of_one_token_is_a_mask(predictor: Predictor) -> None:
    assert fill(predictor, "The [MASK*1].", 3) == fill(predictor, "The [MASK].", 3)


def test_words_of_several_tokens_stand_beside_single_masks(predictor: Predictor) -> None:
    filling = fill(predictor, "The [MASK*3] [MASK] door", 2)
    assert [len(mask) for mask in filling.masks] == [2, 2]
    alone = fill(predictor, "The [MASK][MASK][MASK] [MASK] door", 2)
    assert filling.masks[1] == alone.masks[3]
    assert filling.text == alone.text


def test_masks_are_filled_together_the_surest_first(predictor: Predictor) -> None:
    ids, places = encode(predictor, "[MASK] went [MASK] the [MASK] stairs")
    total, order = 1.0, []
    while places:
        best = {place: plain(predictor, ids, place).max(0) for place in places}
        surest = max(best, key=lambda place: best[place].values.item())
        total *= best[surest].values.item()
        ids[surest] = int(best[surest].indices)
        places.remove(surest)
        order.append(surest)
    filling = fill(predictor, "[MASK] went [MASK] the [MASK] stairs", 1)
    assert filling.text == predictor.tokenizer.decode(ids)
    assert filling.probability == pytest.approx(total, rel=1e-5)
    assert order != sorted(order)  # or the test would not see a filling from left to right


def test_filling_leaves_the_rest_of_the_text_alone(predictor: Predictor) -> None:
    text = "The lamp\n\n  stood — «here» [MASK] 🙂 there."
    filled = fill(predictor, text, 1)
    assert filled.text == text.replace(" [MASK]", filled.masks[0][0].text)


def test_a_mask_in_a_long_text_is_seen_in_a_window_around_it(predictor: Predictor) -> None:
    text = "Aunt [MASK] went up the stairs and came down again and saw the [MASK] from the window of the hall."
    ids, places = encode(predictor, text)
    assert places[0] < 8
    assert 8 < places[1] < len(ids) - 8
    for place, start, candidates in zip(places, (0, places[1] - 8), fill(predictor, text, 3).masks, strict=True):
        expected = plain(predictor, ids[start : start + 16], place - start).topk(3).values
        assert [candidate.probability for candidate in candidates] == pytest.approx(expected.tolist(), rel=1e-5)


def test_filling_in_an_endless_text_sees_what_was_filled_nearby(predictor: Predictor) -> None:
    mask = predictor.tokenizer.mask_id
    far, near = [mask, *[5] * 40, mask], [mask, *[5] * 3, mask]
    alone = [fill_together(predictor, [mask, *[5] * 40])[1], fill_together(predictor, [*[5] * 40, mask])[1]]
    assert fill_together(predictor, far)[1] == pytest.approx(sum(alone), rel=1e-5)
    filled, _ = fill_together(predictor, near)
    assert mask not in filled


@pytest.mark.parametrize(("text", "complaint"), [("no gap", r"no \[MASK\]"), ("a [MASK*0]", "no token at all")])
def test_a_text_without_masks_is_refused(predictor: Predictor, text: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
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
def test_the_spelling_of_a_mask_is_offered(predictor: Predictor, mark: str, spelling: str) -> None:
    with pytest.raises(UserError) as caught:
        fill(predictor, f"The {mark} went out.", 3)
    complaint = f"there is no [MASK] in the text; {mark} is written {spelling}: The {mark} went out."
    assert str(caught.value) == complaint
    assert mark in fill(predictor, f"The [MASK] of {mark}.", 3).text


def test_a_word_longer_than_the_model_sees_is_refused(predictor: Predictor) -> None:
    assert fill(predictor, "a [MASK*016]", 1).text.startswith("a")
    for size in ("17", "99999999999999999999", "9" * 5000):
        with pytest.raises(UserError, match=r"at most \[MASK\*16\]"):
            fill(predictor, f"a [MASK*{size}]", 1)


def test_a_word_of_several_tokens_has_not_endless_candidates(predictor: Predictor) -> None:
    with pytest.raises(UserError, match="at most 1000 candidates"):
        fill(predictor, "a [MASK*2]", 10**9)


def test_far_masks_are_looked_at_once(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    plainly = filling.log_probabilities

    def count(predictor: Predictor, questions: Sequence[tuple[list[int], int]]) -> torch.Tensor:
        asked.append(len(questions))
        return plainly(predictor, questions)

    monkeypatch.setattr(filling, "log_probabilities", count)
    mask = predictor.tokenizer.mask_id
    fill_together(predictor, [mask, *[5] * 40, mask, *[5] * 40, mask])
    assert asked == [3, 0, 0]
    asked.clear()
    fill_together(predictor, [mask, 5, mask, 5, mask])
    assert asked == [3, 2, 1]
