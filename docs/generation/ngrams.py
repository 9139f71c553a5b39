"""The n-grams of a text, and a language model that knows nothing else."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.integer[Any]]
Numbers = npt.NDArray[np.int64]
Counts = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]

NEVER_SEEN = -1


class Table(NamedTuple):
    """The distinct n-grams of one length, in the order of their tokens; their indices are their numbers.

    Attributes:
        keys: number of the n-gram's first n - 1 tokens, times the vocabulary's size, plus its last token; ascending.
        counts: how often each stands in the text.
        lefts: how many different tokens stand before it; of the longest n-grams it is not known, and 0.
    """

    keys: Numbers
    counts: Counts
    lefts: Counts


class Ngrams:
    """All n-grams of a text, up to a length.

    Args:
        text: token ids, documents separated by `end_id`; no n-gram reaches over it.
        vocab_size: more than every id.
        end_id: of the token between documents.
        longest: up to which n.

    Attributes:
        tables: of the 1-grams, the 2-grams, and so on.
    """

    def __init__(self, text: Ids, vocab_size: int, end_id: int, longest: int) -> None:
        self.vocab_size = vocab_size
        self.tables: list[Table] = []
        numbers: Numbers = np.zeros(len(text) + 1, dtype=np.int64)  # of the n-gram at each place; of the 0-gram, 0
        for n in range(1, longest + 1):
            last = text[n - 1 :]
            places = np.flatnonzero((numbers[: len(last)] != NEVER_SEEN) & (last != end_id))
            keys, firsts, found, counts = np.unique(
                self._keys(numbers[places], last[places]), return_index=True, return_inverse=True, return_counts=True
            )
            if self.tables:  # each n-gram, once, has one token before the (n-1)-gram that it ends with
                suffixes = numbers[places[firsts] + 1]
                self.tables[-1].lefts[:] = np.bincount(suffixes, minlength=len(self.tables[-1].keys))
            numbers = np.full(len(last), NEVER_SEEN)
            numbers[places] = found
            self.tables.append(Table(keys, counts.astype(np.int32), np.zeros(len(keys), dtype=np.int32)))

    def find(self, tokens: Ids) -> Iterator[Numbers]:
        """The numbers of the 0-grams, the 1-grams, and so on that begin at each place of other tokens.

        Yields:
            (len(tokens) - n + 1,), `NEVER_SEEN` for an n-gram that is not in the text.
        """
        numbers: Numbers = np.zeros(len(tokens) + 1, dtype=np.int64)
        yield numbers
        for n, table in enumerate(self.tables[: len(tokens)], start=1):
            last = tokens[n - 1 :]
            keys = self._keys(numbers[: len(last)], last)
            places = np.searchsorted(table.keys, keys).clip(max=len(table.keys) - 1)
            seen = (numbers[: len(last)] != NEVER_SEEN) & (table.keys[places] == keys)
            numbers = np.where(seen, places, NEVER_SEEN)
            yield numbers

    def number(self, ngram: Ids) -> int:
        """The number of one n-gram, or `NEVER_SEEN`."""
        *_, numbers = self.find(ngram)
        return int(numbers[0])

    def _keys(self, prefixes: Numbers, last: Ids) -> Numbers:
        return prefixes * self.vocab_size + last


class Order(NamedTuple):
    """What an n-gram model knows of the tokens after contexts of n - 1 tokens.

    Attributes:
        counts: of each n-gram, with the discount taken off.
        totals: of each context: the sum of the counts before that.
        rest: of each context: the probability that the discount leaves to shorter contexts.
        starts: where the n-grams of each context begin in the table; one more than there are contexts.
    """

    counts: Floats
    totals: Floats
    rest: Floats
    starts: Numbers


class NgramModel:
    """The likelihood of a token after the few before it, by interpolated Kneser-Ney.

    From every count a discount is taken, and what it leaves goes to the next shorter context. A shorter n-gram counts
    as often as there are different tokens before it. Below the 1-grams all tokens are alike. The discount of each order
    is n1 / (n1 + 2 n2), of the numbers of n-grams that count once and twice. (Chen & Goodman 1999, "An empirical study
    of smoothing techniques for language modeling".)

    Args:
        ngrams: of the text to learn from.
        order: the longest n-gram that counts, 1 for a model of single tokens.
        without_text: ids that never follow.
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
        """The probability of each token of a document, given those before it."""
        result = self.uniform[tokens]
        numbers = self.ngrams.find(tokens)
        contexts = next(numbers)
        for n, (order, found) in enumerate(zip(self.orders, numbers, strict=False)):
            place = contexts[: len(found)]
            known = np.flatnonzero(place != NEVER_SEEN)
            known = known[order.totals[place[known]] > 0]
            context, ngram = place[known], found[known]
            own = np.where(ngram == NEVER_SEEN, 0.0, order.counts[ngram]) / order.totals[context]
            result[known + n] = own + order.rest[context] * result[known + n]
            contexts = found
        return result

    def nats(self, documents: Sequence[Ids]) -> float:
        """Minus the logarithm of the probability of a token, in the mean over all tokens of documents."""
        return -float(np.log(np.concatenate([self.probabilities(tokens) for tokens in documents])).mean())

    def next_probabilities(self, context: Ids) -> Floats:
        """The probability of every token, (vocabulary,), after a context of any length."""
        result = self.uniform.copy()
        seen_by_each = zip(range(len(context) + 1), self.orders, self.ngrams.tables, strict=False)
        for seen, order, table in seen_by_each:
            number = self.ngrams.number(context[len(context) - seen :])
            if number != NEVER_SEEN and order.totals[number] > 0:
                after = slice(order.starts[number], order.starts[number + 1])
                result *= order.rest[number]
                result[table.keys[after] % self.ngrams.vocab_size] += order.counts[after] / order.totals[number]
        return result

    def write(self, length: int, seed: Sequence[int]) -> list[int]:
        """Draw tokens from left to right.

        Those that are drawn first, with less than a whole context before them, are left out.
        """
        generator = np.random.default_rng(seed)
        tokens: list[int] = []
        for _ in range(len(self.orders) - 1 + length):
            likely = self.next_probabilities(np.array(tokens, dtype=np.int64))
            tokens.append(int(generator.choice(len(likely), p=likely)))
        return tokens[-length:]


def discounted(contexts: Numbers, counts: Counts, number: int) -> Order:
    """Take the discount from the counts of n-grams.

    Args:
        contexts: number of each n-gram's context, ascending.
        counts: of each n-gram.
        number: of contexts.
    """
    once, twice = (counts == 1).sum(), (counts == 2).sum()
    discount = once / (once + 2 * twice) if once else 0.5  # where nothing counts once, what is new is possible still
    totals: Floats = np.bincount(contexts, weights=counts, minlength=number).astype(float)
    kinds = np.bincount(contexts, weights=counts > 0, minlength=number)
    rest = np.divide(discount * kinds, totals, out=np.ones(number), where=totals > 0)
    starts = np.searchsorted(contexts, np.arange(number + 1))
    return Order((counts - discount).clip(min=0.0), totals, rest, starts)
