"""How good generated texts are: figures of a set of them, and the table that holds the sets side by side.

No figure tells it alone. A text that repeats itself is likely in the eyes of any language model, so the judge likes
"the the the"; a list of random words is as diverse as can be; and a model that recites its training text does well in
all but the share of what is copied.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ngrams import NEVER_SEEN, Ngrams
from passages import Passage

if TYPE_CHECKING:
    from judge import Judge

Ids = Sequence[int]

NEAR = 32  # tokens back in which a token counts as repeated
REPEATED = 4  # tokens of an n-gram that counts as repeated
COPIED = 8  # tokens of an n-gram that counts as copied


class Figures(NamedTuple):
    """Figures of a set of texts.

    Attributes:
        distinct: distinct-1, -2 and -3.
        repeated_tokens: rep/32.
        repeated_ngrams: seq-rep-4.
        perplexity: of a GPT-2 token, under the judge.
        copied: the share of the 8-grams that stand in the training text.
    """

    distinct: tuple[float, ...]
    repeated_tokens: float
    repeated_ngrams: float
    perplexity: float
    copied: float


class Row(NamedTuple):
    """A row of the table: nats per token of the held-out text, where a row has them, and figures of texts."""

    nats: float | None
    figures: Figures


def measure(passages: Sequence[Passage], judge: "Judge", training_text: Ngrams) -> Figures:
    """Take the figures of a set of texts. Only sets of as many texts of the same length can be compared."""
    texts = [passage.tokens for passage in passages]
    return Figures(
        tuple(distinct(texts, n) for n in (1, 2, 3)),
        repeated_tokens(texts),
        repeated_ngrams(texts),
        math.exp(sum(judge.nats([passage.text for passage in passages])) / sum(map(len, texts))),
        copied(texts, training_text),
    )


def ngrams_of(text: Ids, n: int) -> list[tuple[int, ...]]:
    """All n-grams of a text, in order."""
    return list(zip(*(text[first:] for first in range(n)), strict=False))


def distinct(texts: Sequence[Ids], n: int) -> float:
    """The share of different ones among all n-grams of a set of texts (Li et al. 2016, arXiv 1510.03055)."""
    ngrams = [ngram for text in texts for ngram in ngrams_of(text, n)]
    return len(set(ngrams)) / len(ngrams)


def repeated_tokens(texts: Sequence[Ids]) -> float:
    """The share of the tokens that stand among the 32 before them (rep/l, Welleck et al. 2019, arXiv 1908.04319)."""
    again = [token in text[max(0, place - NEAR) : place] for text in texts for place, token in enumerate(text)]
    return sum(again) / len(again)


def repeated_ngrams(texts: Sequence[Ids]) -> float:
    """The share of a text's 4-grams that repeat one before them, in the mean over texts (seq-rep-4, ibid.)."""
    return float(np.mean([1 - distinct([text], REPEATED) for text in texts]))


def copied(texts: Sequence[Ids], training_text: Ngrams) -> float:
    """The share of all 8-grams that stand in the training text word for word."""
    found = [list(training_text.find(np.array(text)))[COPIED] for text in texts]
    return float((np.concatenate(found) != NEVER_SEEN).mean())


def table(rows: Mapping[str, Row]) -> str:
    """The rows as a table in Markdown."""
    heads = ["", "NLL", "distinct-1", "-2", "-3", "rep/32", "seq-rep-4", "judge's perplexity", "copied 8-grams"]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for name, (nats, figures) in rows.items():
        lines.append(
            [
                name,
                "" if nats is None else f"{nats:.3f}",
                *[f"{share:.3f}" for share in figures.distinct],
                f"{figures.repeated_tokens:.1%}",
                f"{figures.repeated_ngrams:.2%}",
                f"{figures.perplexity:.1f}",
                f"{figures.copied:.1%}",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
