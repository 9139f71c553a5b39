"""The n-grams of a text, and a language model of n-grams."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.integer[Any]]
Indices = npt.NDArray[np.int64]
Counts = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]

NEVER_SEEN = -1


class Table(NamedTuple):
    """The distinct n-grams of one length n, sorted by their tokens. An n-gram is identified by its index here.

    Attributes:
        keys: ascending: the index of the n-gram's first n - 1 tokens, times the vocabulary size, plus its last token.
        counts: number of occurrences of each n-gram in the text.
        lefts: number of distinct tokens that precede each n-gram; 0 for the longest n-grams, where it is unknown.
    """

    keys: Indices
    counts: Counts
    lefts: Counts


class Ngrams:
    """All n-grams of a text, up to a maximum length.

    Args:
        text: token ids, with `end_id` between documents. No n-gram contains `end_id`.
        vocab_size: larger than every id.
        end_id: of the token between documents.
        longest: the largest n.

    Attributes:
        tables: of the 1-grams, the 2-grams, and so on.
    """

    def __init__(self, text: Ids, vocab_size: int, end_id: int, longest: int) -> None:
        self.vocab_size = vocab_size
        self.tables: list[Table] = []
        # Index of the n-gram at each position. There is a single 0-gram, with index 0.
        indices: Indices = np.zeros(len(text) + 1, dtype=np.int64)
        for n in range(1, longest + 1):
            last = text[n - 1 :]
            positions = np.flatnonzero((indices[: len(last)] != NEVER_SEEN) & (last != end_id))
            keys, firsts, found, counts = np.unique(
                self._keys(indices[positions], last[positions]),
                return_index=True,
                return_inverse=True,
                return_counts=True,
            )
            if self.tables:  # each distinct n-gram adds one preceding token to the (n-1)-gram that it ends with
                suffixes = indices[positions[firsts] + 1]
                self.tables[-1].lefts[:] = np.bincount(suffixes, minlength=len(self.tables[-1].keys))
            indices = np.full(len(last), NEVER_SEEN)
            indices[positions] = found
            self.tables.append(Table(keys, counts.astype(np.int32), np.zeros(len(keys), dtype=np.int32)))

    def find(self, tokens: Ids) -> Iterator[Indices]:
        """Look up the n-grams that begin at each position of other tokens, for n = 0, 1, and so on.

        Yields:
            (len(tokens) - n + 1,) indices of the n-grams, `NEVER_SEEN` for those that are not in the text.
        """
        indices: Indices = np.zeros(len(tokens) + 1, dtype=np.int64)
        yield indices
        for n, table in enumerate(self.tables[: len(tokens)], start=1):
            last = tokens[n - 1 :]
            keys = self._keys(indices[: len(last)], last)
            positions = np.searchsorted(table.keys, keys).clip(max=len(table.keys) - 1)
            seen = (indices[: len(last)] != NEVER_SEEN) & (table.keys[positions] == keys)
            indices = np.where(seen, positions, NEVER_SEEN)
            yield indices

    def index(self, ngram: Ids) -> int:
        """The index of one n-gram, or `NEVER_SEEN`."""
        *_, indices = self.find(ngram)
        return int(indices[0])

    def _keys(self, prefixes: Indices, last: Ids) -> Indices:
        return prefixes * self.vocab_size + last


class Order(NamedTuple):
    """The statistics of an n-gram model for contexts of n - 1 tokens.

    Attributes:
        counts: discounted count of each n-gram.
        totals: for each context, the sum of its counts before the discount.
        rest: for each context, the probability that the discount leaves to shorter contexts.
        starts: (contexts + 1,) index in the table where the n-grams of each context begin.
    """

    counts: Floats
    totals: Floats
    rest: Floats
    starts: Indices


class NgramModel:
    """An n-gram language model with interpolated Kneser-Ney smoothing.

    A discount is subtracted from every count, and the probability that this frees goes to the next shorter context. The
    count of a shorter n-gram is the number of distinct tokens that precede it. Below the 1-grams, the distribution is
    uniform. The discount of each order is n1 / (n1 + 2 n2), where n1 and n2 are the numbers of n-grams with a count of
    1 and 2. (Chen & Goodman 1999, "An empirical study of smoothing techniques for language modeling".)

    Args:
        ngrams: of the training text.
        order: length of the longest n-grams of the model; 1 for a unigram model.
        without_text: ids with probability 0.
    """

    def __init__(self, ngrams: Ngrams, order: int, without_text: Sequence[int]) -> None:
        self.ngrams = ngrams
        self.uniform: Floats = np.ones(ngrams.vocab_size)
        self.uniform[without_text] = 0
        self.uniform /= self.uniform.sum()
        self.orders: list[Order] = []
        contexts = 1
        for n, table in enumerate(ngrams.tables[:order], start=1):
            counts = table.counts if n == order else table.lefts
            self.orders.append(discounted(table.keys // ngrams.vocab_size, counts, contexts))
            contexts = len(table.keys)

    def probabilities(self, tokens: Ids) -> Floats:
        """The probability of each token of a document, given the tokens before it."""
        result = self.uniform[tokens]
        indices = self.ngrams.find(tokens)
        contexts = next(indices)
        for n, (order, found) in enumerate(zip(self.orders, indices, strict=False)):
            context = contexts[: len(found)]
            known = np.flatnonzero(context != NEVER_SEEN)
            known = known[order.totals[context[known]] > 0]
            context, ngram = context[known], found[known]
            own = np.where(ngram == NEVER_SEEN, 0.0, order.counts[ngram]) / order.totals[context]
            result[known + n] = own + order.rest[context] * result[known + n]
            contexts = found
        return result

    def nats(self, documents: Sequence[Ids]) -> float:
        """The mean negative log-likelihood of all tokens of documents, in nats per token."""
        return -float(np.log(np.concatenate([self.probabilities(tokens) for tokens in documents])).mean())

    def next_probabilities(self, context: Ids) -> Floats:
        """The probability of each token of the vocabulary after a context of any length: (vocab_size,)."""
        result = self.uniform.copy()
        seen_by_each = zip(range(len(context) + 1), self.orders, self.ngrams.tables, strict=False)
        for seen, order, table in seen_by_each:
            index = self.ngrams.index(context[len(context) - seen :])
            if index != NEVER_SEEN and order.totals[index] > 0:
                after = slice(order.starts[index], order.starts[index + 1])
                result *= order.rest[index]
                result[table.keys[after] % self.ngrams.vocab_size] += order.counts[after] / order.totals[index]
        return result

    def generate(self, length: int, seed: Sequence[int]) -> list[int]:
        """Sample tokens from left to right.

        The first tokens, sampled with less than a full context, are dropped.
        """
        generator = np.random.default_rng(seed)
        tokens: list[int] = []
        for _ in range(len(self.orders) - 1 + length):
            probabilities = self.next_probabilities(np.array(tokens, dtype=np.int64))
            tokens.append(int(generator.choice(len(probabilities), p=probabilities)))
        return tokens[-length:]


def discounted(contexts: Indices, counts: Counts, context_count: int) -> Order:
    """Subtract the discount from the counts of n-grams.

    Args:
        contexts: index of the context of each n-gram, ascending.
        counts: of each n-gram.
        context_count: number of contexts.
    """
    once, twice = (counts == 1).sum(), (counts == 2).sum()
    discount = once / (once + 2 * twice) if once else 0.5  # without a count of 1, unseen tokens stay possible
    totals: Floats = np.bincount(contexts, weights=counts, minlength=context_count).astype(float)
    distinct = np.bincount(contexts, weights=counts > 0, minlength=context_count)
    rest = np.divide(discount * distinct, totals, out=np.ones(context_count), where=totals > 0)
    starts = np.searchsorted(contexts, np.arange(context_count + 1))
    return Order((counts - discount).clip(min=0.0), totals, rest, starts)
