"""Filling masks: candidates for each mask, and all masks filled together."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from mlm_dist.data.tokenizer import MASK
from mlm_dist.errors import UserError
from mlm_dist.inference.marks import MASKED_WORD, misspelt_mask
from mlm_dist.inference.predictor import Predictor

DIGITS = 6  # digits read of n in `[MASK*n]`; a longer number exceeds any block size anyway
WIDEST_BEAM = 1000


class Candidate(NamedTuple):
    """A word that may replace a mask, and its probability according to the model."""

    text: str
    probability: float


class Filling(NamedTuple):
    """The predictions for the masks of a text.

    Attributes:
        masks: the most likely candidates for each mask, most likely first, predicted while all other masks are still
            in the text.
        text: the text with all masks filled one after the other, the most confident prediction first.
        probability: of that text: the product of the probabilities of the filled tokens, each given the tokens
            filled before it.
    """

    masks: list[list[Candidate]]
    text: str
    probability: float


def fill(predictor: Predictor, text: str, top: int) -> Filling:
    """Fill the masks of a text.

    A text may be longer than the model's block size. Each mask is then predicted from a window of that length around
    it.

    Args:
        predictor: the model.
        text: a text with one or more masks: `[MASK]` for one token, `[MASK*n]` for a word of n tokens.
        top: number of candidates per mask.

    Raises:
        UserError: the text has no mask, n is 0 or larger than the block size, `top` is above `WIDEST_BEAM` although a
            mask stands for several tokens, or the text holds a lone surrogate.
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
    """Find the most likely words for a masked word by beam search from left to right.

    Args:
        predictor: the model.
        ids: token ids of the text.
        word: consecutive positions of the word's tokens.
        top: beam width, and the largest number of candidates returned.
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
    """Fill all masks one after the other, the most confident prediction first, given the masks filled so far.

    Returns:
        The token ids of the filled text, and the log-probability of the filling.
    """
    total = 0.0
    masked = {place for place, token in enumerate(ids) if token == predictor.tokenizer.mask_id}
    best: dict[int, tuple[float, int]] = {}  # by position: log-probability and id of the most likely token
    changed = sorted(masked)  # positions whose predictions are out of date
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
    """Compute the log-probabilities of all tokens at one position of each text.

    Args:
        predictor: the model.
        questions: the token ids of a text, and the position to predict.

    Returns:
        (questions, vocabulary of the tokenizer), on the CPU; minus infinity for tokens that do not stand for text.
    """
    found = torch.empty(len(questions), predictor.tokenizer.vocab_size)
    windows = [predictor.window(len(ids), place) for ids, place in questions]
    rows = ((i, ids[slice(*window)]) for i, ((ids, _), window) in enumerate(zip(questions, windows, strict=True)))
    for numbers, tokens in predictor.in_batches(rows):
        logits = predictor.logits(tokens, [questions[i][1] - windows[i].start for i in numbers])
        found[numbers] = predictor.log_probabilities(logits).cpu()
    return found


def replace(ids: list[int], place: int, token: int) -> list[int]:
    """Copy token ids, with another token at one position."""
    return [*ids[:place], token, *ids[place + 1 :]]
