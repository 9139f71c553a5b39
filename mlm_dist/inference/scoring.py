"""Scoring texts with a masked language model: their pseudo-log-likelihood."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import torch

from mlm_dist.distributed import Processes
from mlm_dist.inference.predictor import Predictor

TOKENS_AT_ONCE = 2048  # of a batch of short rows: the fastest on a CPU
ROWS_COMPARED = 1024  # enough for the texts of many pairs, and few enough to hold rows of any length in memory

Item = TypeVar("Item")
Result = TypeVar("Result")


class Score(NamedTuple):
    """The pseudo-log-likelihood of a text.

    Attributes:
        log_likelihood: sum over the tokens, in nats.
        tokens: number of tokens.
    """

    log_likelihood: float
    tokens: int


class MaskedToken(NamedTuple):
    """A masked token to predict: the index of its text, its position in the window, and its id."""

    text: int
    position: int
    target: int


def score(predictor: Predictor, texts: Sequence[str], within_word: bool) -> list[Score]:
    """Sum the log-probabilities of the tokens of each text, masking one at a time.

    This is the pseudo-log-likelihood of Salazar et al. 2020, arXiv 1910.14659. A row that occurs again soon is computed
    once: texts that differ in one token have one in common, the one in which this token is masked.

    Args:
        predictor: the model.
        texts: texts to score. In a text longer than the model's block size, each token is predicted from a window
            around it.
        within_word: with each token, also mask the tokens after it in the same word, so that the subwords of a rare
            word do not reveal each other (Kauf and Ivanova 2023, arXiv 2305.10588).

    Raises:
        UserError: a text contains a lone surrogate.
    """
    sums = torch.zeros(len(texts), dtype=torch.float64)
    words = [predictor.tokenizer.encode_words(text) for text in texts]
    rows = (row for i, text in enumerate(words) for row in mask_each(predictor, i, text, within_word))
    for masked, tokens in predictor.in_batches(merge_equal(rows), TOKENS_AT_ONCE):
        positions = [equal[0].position for equal in masked]
        row_of, predicted = zip(*((row, token) for row, equal in enumerate(masked) for token in equal), strict=True)
        found = predictor.log_likelihoods(tokens, positions, row_of, [token.target for token in predicted])
        sums.index_add_(0, torch.tensor([token.text for token in predicted]), found.double().cpu())
    counts = [sum(map(len, text)) for text in words]
    return [Score(total, count) for total, count in zip(sums.tolist(), counts, strict=True)]


def score_on_all_ranks(
    score_items: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item], processes: Processes
) -> list[Result]:
    """Score a part of the items (texts or pairs of them) on each rank, and return all scores on all ranks."""
    parts = processes.all_gather(score_items(items[processes.rank :: processes.world_size]))
    return [score for scores in itertools.zip_longest(*parts) for score in scores if score is not None]


def mask_each(
    predictor: Predictor, i: int, words: list[list[int]], within_word: bool
) -> Iterator[tuple[MaskedToken, list[int]]]:
    """Yield one row per token of a text: the window around the token, in which it is masked.

    Args:
        predictor: the model.
        i: index of the text.
        words: token ids of the text, word by word.
        within_word: also mask the tokens after it in the same word.
    """
    ids = [token for word in words for token in word]
    ends = [end for word, end in zip(words, itertools.accumulate(map(len, words)), strict=True) for _ in word]
    for index, target in enumerate(ids):
        start, stop = predictor.window(len(ids), index)
        mask_end = min(stop, ends[index]) if within_word else index + 1
        masks = [predictor.tokenizer.mask_id] * (mask_end - index)
        yield MaskedToken(i, index - start, target), [*ids[start:index], *masks, *ids[mask_end:stop]]


def merge_equal(
    rows: Iterable[tuple[MaskedToken, list[int]]],
) -> Iterator[tuple[list[MaskedToken], tuple[int, ...]]]:
    """Yield each row once, with all tokens to predict in it; of `ROWS_COMPARED` rows at a time.

    The position is the same for all of them: that of the first mask, since no text contains the mask token.
    """
    rows = iter(rows)
    while compared := list(itertools.islice(rows, ROWS_COMPARED)):
        tokens_of: dict[tuple[int, ...], list[MaskedToken]] = {}
        for token, ids in compared:
            tokens_of.setdefault(tuple(ids), []).append(token)
        yield from ((tokens, ids) for ids, tokens in tokens_of.items())
