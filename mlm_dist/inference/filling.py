"""What may stand in the place of masks: each for itself, and all of them together."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from mlm_dist.data.tokenizer import MASK
from mlm_dist.errors import UserError
from mlm_dist.inference.marks import MASKED_WORD, misspelt_mask
from mlm_dist.inference.predictor import Predictor

DIGITS = 6  # of n in `[MASK*n]`; more are more than any model sees all the same
WIDEST_BEAM = 1000


class Candidate(NamedTuple):
    """A word that may stand in a mask's place, and how likely the model thinks it."""

    text: str
    probability: float


class Filling(NamedTuple):
    """A text whose masks were filled.

    Attributes:
        masks: for each mask the likeliest candidates, the likeliest first, as long as the other masks are hidden.
        text: the text with all masks filled together.
        probability: of that filling: the product of each token's, given what had been filled before it.
    """

    masks: list[list[Candidate]]
    text: str
    probability: float


def fill(predictor: Predictor, text: str, top: int) -> Filling:
    """Fill the masks of a text.

    A text may be longer than the model's block: each mask is then seen in a window of that length around it.

    Args:
        predictor: the model.
        text: with one or more `[MASK]`, each for one token, or `[MASK*n]`, for a word of n tokens.
        top: how many candidates to give for each mask.

    Raises:
        UserError: the text has no mask.
    """
    sizes = [int(number[:DIGITS] or 1) for number in MASKED_WORD.findall(text)]
    if not sizes:
        hint = misspelt_mask(text)
        raise UserError(f"there is no {MASK} in the text{f'; {hint}' if hint else ''}: {text}")
    if 0 in sizes:
        raise UserError(f"[MASK*0] stands for no token at all; [MASK*1] is the least: {text}")
    if max(sizes) > predictor.block_size:
        raise UserError(f"[MASK*n] is at most [MASK*{predictor.block_size}], as many tokens as the model sees: {text}")
    if max(sizes) > 1 and top > WIDEST_BEAM:
        raise UserError(f"of a word of several tokens at most {WIDEST_BEAM} candidates are looked for, not {top}")
    ids = predictor.tokenizer.encode_with_masks(MASKED_WORD.sub(lambda found: MASK * int(found[1] or 1), text))
    places = iter([place for place, token in enumerate(ids) if token == predictor.tokenizer.mask_id])
    words = [[next(places) for _ in range(size)] for size in sizes]
    masks = [candidates(predictor, ids, word, top) for word in words]
    filled, log_probability = fill_together(predictor, ids)
    return Filling(masks, predictor.tokenizer.decode(filled), math.exp(log_probability))


def candidates(predictor: Predictor, ids: list[int], word: Sequence[int], top: int) -> list[Candidate]:
    """The likeliest tokens for the places of a masked word, found by a beam search from left to right.

    Args:
        predictor: the model.
        ids: the text.
        word: places of the word in it, one after the other.
        top: width of the beam, and how many candidates come out.
    """
    beams = [(0.0, ids)]
    for place in word:
        likely = log_probabilities(predictor, [(beam, place) for _, beam in beams])
        sums = likely + torch.tensor([log_probability for log_probability, _ in beams])[:, None]
        best = sums.flatten().topk(min(top, int(likely[0].isfinite().sum()) * len(beams)))
        beams = [
            (value, replace(beams[index // likely.shape[1]][1], place, index % likely.shape[1]))
            for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
    decode = predictor.tokenizer.decode
    return [Candidate(decode(beam[place] for place in word), math.exp(value)) for value, beam in beams]


def fill_together(predictor: Predictor, ids: list[int]) -> tuple[list[int], float]:
    """Fill all masks, the one that the model is surest of first, then the surest of the rest given that, and so on.

    Returns:
        The filled text, and the logarithm of the filling's probability.
    """
    total = 0.0
    masked = {place for place, token in enumerate(ids) if token == predictor.tokenizer.mask_id}
    best: dict[int, tuple[float, int]] = {}  # by place: the likeliest token, and the logarithm of its probability
    changed = sorted(masked)  # places that have something new to see
    while masked:
        found = log_probabilities(predictor, [(ids, place) for place in changed]).max(1)
        best |= zip(changed, zip(found.values.tolist(), found.indices.tolist(), strict=True), strict=True)
        filled = max(sorted(masked), key=lambda place: best[place][0])
        masked.remove(filled)
        total += best[filled][0]
        ids = replace(ids, filled, best[filled][1])
        windows = {place: predictor.window(len(ids), place) for place in sorted(masked)}
        changed = [place for place, window in windows.items() if window.start <= filled < window.stop]
    return ids, total


def log_probabilities(predictor: Predictor, questions: Sequence[tuple[list[int], int]]) -> torch.Tensor:
    """Log-probabilities of every token of the vocabulary that stands for text, for a place of each text.

    Args:
        predictor: the model.
        questions: the ids of a text, and the index of the token that is asked for.

    Returns:
        (questions, vocabulary of the tokenizer), on the CPU; minus infinity for the others.
    """
    found = torch.empty(len(questions), predictor.tokenizer.vocab_size)
    windows = [predictor.window(len(ids), place) for ids, place in questions]
    rows = ((i, ids[slice(*window)]) for i, ((ids, _), window) in enumerate(zip(questions, windows, strict=True)))
    for numbers, tokens in predictor.in_batches(rows):
        logits = predictor.logits(tokens, [questions[i][1] - windows[i].start for i in numbers])
        found[numbers] = predictor.log_probabilities(logits).cpu()
    return found


def replace(ids: list[int], place: int, token: int) -> list[int]:
    """A copy of a text with another token in one place."""
    return [*ids[:place], token, *ids[place + 1 :]]
