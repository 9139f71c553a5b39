"""Quality of generated texts: metrics of a set of texts, and the table that compares sets.

No metric is sufficient by itself. Any language model gives repetitive text a high likelihood, so the judge prefers
"the the the". A list of random words has the highest diversity. A model that recites its training text does well in
every metric but the fraction of copied text.
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

NEAR = 32  # a token counts as repeated if it is among this many tokens before it
REPEATED = 4  # tokens of an n-gram that counts as repeated
COPIED = 8  # tokens of an n-gram that counts as copied


class Metrics(NamedTuple):
    """Metrics of a set of texts.

    Attributes:
        distinct: distinct-1, -2 and -3.
        repeated_tokens: rep/32.
        repeated_ngrams: seq-rep-4.
        perplexity: under the judge, per token of the passages, which are GPT-2 tokens in a corpus prepared by default.
        copied: fraction of the 8-grams that occur in the training text.
    """

    distinct: tuple[float, ...]
    repeated_tokens: float
    repeated_ngrams: float
    perplexity: float
    copied: float


class Row(NamedTuple):
    """A row of the table: nats per token of the validation text, if known, and metrics of texts."""

    nats: float | None
    metrics: Metrics


def measure(passages: Sequence[Passage], judge: "Judge", training_text: Ngrams) -> Metrics:
    """Compute the metrics of a set of texts. Only sets with the same number and length of texts are comparable."""
    texts = [passage.tokens for passage in passages]
    return Metrics(
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
    """The fraction of distinct n-grams among all n-grams of a set of texts (Li et al. 2016, arXiv 1510.03055)."""
    ngrams = [ngram for text in texts for ngram in ngrams_of(text, n)]
    return len(set(ngrams)) / len(ngrams)


def repeated_tokens(texts: Sequence[Ids]) -> float:
    """The fraction of tokens that are among the 32 before them (rep/l, Welleck et al. 2019, arXiv 1908.04319)."""
    repeated = [token in text[max(0, i - NEAR) : i] for text in texts for i, token in enumerate(text)]
    return sum(repeated) / len(repeated)


def repeated_ngrams(texts: Sequence[Ids]) -> float:
    """The fraction of a text's 4-grams that repeat an earlier one, averaged over texts (seq-rep-4, ibid.)."""
    return float(np.mean([1 - distinct([text], REPEATED) for text in texts]))


def copied(texts: Sequence[Ids], training_text: Ngrams) -> float:
    """The fraction of all 8-grams that occur verbatim in the training text."""
    found = [list(training_text.find(np.array(text)))[COPIED] for text in texts]
    return float((np.concatenate(found) != NEVER_SEEN).mean())


def table(rows: Mapping[str, Row]) -> str:
    """The rows as a Markdown table."""
    titles = ["", "NLL", "distinct-1", "-2", "-3", "rep/32", "seq-rep-4", "judge's perplexity", "copied 8-grams"]
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)]]
    for name, (nats, metrics) in rows.items():
        lines.append(
            [
                name,
                "" if nats is None else f"{nats:.3f}",
                *[f"{fraction:.3f}" for fraction in metrics.distinct],
                f"{metrics.repeated_tokens:.1%}",
                f"{metrics.repeated_ngrams:.2%}",
                f"{metrics.perplexity:.1f}",
                f"{metrics.copied:.1%}",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
