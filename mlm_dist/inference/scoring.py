"""Scoring texts with a masked language model: their pseudo-log-likelihood."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from mlm_dist.distributed import Processes
from mlm_dist.inference.predictor import Predictor


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

    This is the pseudo-log-likelihood of Salazar et al. 2020, arXiv 1910.14659.

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
    for masked, tokens in predictor.in_batches(rows):
        logits = predictor.logits(tokens, [token.position for token in masked])
        targets = torch.tensor([token.target for token in masked], device=logits.device)
        found = logits.float().log_softmax(-1).gather(1, targets[:, None])[:, 0]
        sums.index_add_(0, torch.tensor([token.text for token in masked]), found.double().cpu())
    counts = [sum(map(len, text)) for text in words]
    return [Score(total, count) for total, count in zip(sums.tolist(), counts, strict=True)]


def score_on_all_ranks(
    score_texts: Callable[[Sequence[str]], list[Score]], texts: Sequence[str], processes: Processes
) -> list[Score]:
    """Score a part of the texts on each rank, and return all scores on all ranks."""
    scores = [Score(0.0, 0)] * len(texts)
    for rank, part in enumerate(processes.all_gather(score_texts(texts[processes.rank :: processes.world_size]))):
        scores[rank :: processes.world_size] = part
    return scores


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
    ends = [end for word, end in zip(words, ends_of(words), strict=True) for _ in word]
    for index, target in enumerate(ids):
        start, stop = predictor.window(len(ids), index)
        mask_end = min(stop, ends[index]) if within_word else index + 1
        masks = [predictor.tokenizer.mask_id] * (mask_end - index)
        yield MaskedToken(i, index - start, target), [*ids[start:index], *masks, *ids[mask_end:stop]]


def ends_of(words: list[list[int]]) -> list[int]:
    """The index after the last token of each word."""
    ends = [0]
    for word in words:
        ends.append(ends[-1] + len(word))
    return ends[1:]
