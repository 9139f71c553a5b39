"""Filling masks: candidates for each mask, and the text with all masks filled."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from mlm_dist.data.tokenizer import MASK
from mlm_dist.errors import UserError
from mlm_dist.inference.marks import MASKED_WORD, misspelt_mask
from mlm_dist.inference.predictor import Predictor

MAX_DIGITS = 6  # digits of n in `[MASK*n]` that are read; a longer number exceeds every block size anyway
MAX_BEAM_WIDTH = 1000


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
        UserError: the text has no mask, n is 0 or larger than the block size, `top` is above `MAX_BEAM_WIDTH` although
            a mask stands for several tokens, or the text contains a lone surrogate.
    """
    sizes = [int(number[:MAX_DIGITS] or 1) for number in MASKED_WORD.findall(text)]
    if not sizes:
        hint = misspelt_mask(text)
        raise UserError(f"the text contains no {MASK}{f'; {hint}' if hint else ''}: {text}")
    if 0 in sizes:
        raise UserError(f"n in [MASK*n] must be at least 1: {text}")
    if max(sizes) > predictor.block_size:
        raise UserError(f"n in [MASK*n] must be at most {predictor.block_size}, the context window: {text}")
    if max(sizes) > 1 and top > MAX_BEAM_WIDTH:
        raise UserError(f"--top is {top}: it must be at most {MAX_BEAM_WIDTH} for a word of several tokens")
    ids = predictor.tokenizer.encode_with_masks(MASKED_WORD.sub(lambda found: MASK * int(found[1] or 1), text))
    positions = iter([position for position, token in enumerate(ids) if token == predictor.tokenizer.mask_id])
    words = [[next(positions) for _ in range(size)] for size in sizes]
    masks = [candidates(predictor, ids, word, top) for word in words]
    filled, log_probability = fill_all(predictor, ids)
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
    for position in word:
        log_probs = log_probabilities(predictor, [(beam, position) for _, beam in beams])
        sums = log_probs + torch.tensor([log_probability for log_probability, _ in beams])[:, None]
        best = sums.flatten().topk(min(top, int(log_probs[0].isfinite().sum()) * len(beams)))
        beams = [
            (value, replace(beams[index // log_probs.shape[1]][1], position, index % log_probs.shape[1]))
            for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
    decode = predictor.tokenizer.decode
    return [Candidate(decode(beam[position] for position in word), math.exp(value)) for value, beam in beams]


def fill_all(predictor: Predictor, ids: list[int]) -> tuple[list[int], float]:
    """Fill all masks one after the other, the most confident prediction first, given the masks filled so far.

    Returns:
        The token ids of the filled text, and the log-probability of the filling.
    """
    total = 0.0
    masked = {position for position, token in enumerate(ids) if token == predictor.tokenizer.mask_id}
    best: dict[int, tuple[float, int]] = {}  # by position: log-probability and id of the most likely token
    stale = sorted(masked)  # positions whose predictions are out of date
    while masked:
        found = log_probabilities(predictor, [(ids, position) for position in stale]).max(1)
        best |= zip(stale, zip(found.values.tolist(), found.indices.tolist(), strict=True), strict=True)
        filled = max(sorted(masked), key=lambda position: best[position][0])
        masked.remove(filled)
        total += best[filled][0]
        ids = replace(ids, filled, best[filled][1])
        windows = {position: predictor.window(len(ids), position) for position in sorted(masked)}
        stale = [position for position, window in windows.items() if window.start <= filled < window.stop]
    return ids, total


def log_probabilities(predictor: Predictor, queries: Sequence[tuple[list[int], int]]) -> torch.Tensor:
    """Compute the log-probabilities of all tokens at one position of each text.

    Args:
        predictor: the model.
        queries: the token ids of a text, and the position to predict.

    Returns:
        (queries, vocabulary of the tokenizer), on the CPU; minus infinity for tokens that do not stand for text.
    """
    found = torch.empty(len(queries), predictor.tokenizer.vocab_size)
    windows = [predictor.window(len(ids), position) for ids, position in queries]
    rows = ((i, ids[slice(*window)]) for i, ((ids, _), window) in enumerate(zip(queries, windows, strict=True)))
    for indices, tokens in predictor.in_batches(rows):
        logits = predictor.logits(tokens, [queries[i][1] - windows[i].start for i in indices])
        found[indices] = predictor.log_probabilities(logits).cpu()
    return found


def replace(ids: list[int], position: int, token: int) -> list[int]:
    """Copy token ids, with another token at one position."""
    return [*ids[:position], token, *ids[position + 1 :]]
