"""Mixtures of corpora: their tokenizer, and which corpus each row of a run comes from."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mlm_dist.data.corpus import Corpus
from mlm_dist.data.randomness import derive_key
from mlm_dist.data.sampler import Indices
from mlm_dist.errors import UserError

STEPS = 1000  # after which the order of corpora repeats


def join_corpora(corpora: Sequence[Corpus], block_size: int) -> list[Corpus]:
    """The corpora of a run, all with its tokenizer: the one with the most tokens, which extends those of the others.

    Raises:
        UserError: it does not extend the tokenizer of a corpus, or a corpus of a mixture has less than a row.
    """
    largest = max(corpora, key=lambda corpus: corpus.tokenizer.vocab_size)
    for corpus in corpora:
        if not largest.tokenizer.extends(corpus.tokenizer):
            raise UserError(
                f"{corpus.folder} has another tokenizer ({corpus.tokenizer.name}) than {largest.folder} "
                f"({largest.tokenizer.name}): the corpora of a mixture need the same one, or that which was extended; "
                f"prepare its texts again with --tokenizer {largest.folder}"
            )
        if len(corpora) > 1 and len(corpus.train) < block_size:
            raise UserError(
                f"{corpus.folder} has {len(corpus.train)} tokens to train on, less than a row of model.block_size "
                f"{block_size}: add more text to it, or remove it from data.path"
            )
    return [replace(corpus, tokenizer=largest.tokenizer) for corpus in corpora]


class Shares:
    """The corpus of each row, as a function of the seed and of the number of the row in the run.

    The rows of 1,000 steps are places 0 to n - 1, of which each corpus has a range. The order of the places is that of
    the multiples of a stride near n / golden ratio, so every step has nearly the same shares. It repeats every 1,000
    steps, so any 1,000 steps in a row have the same number of rows of each corpus: its share, rounded.

    Args:
        weights: of the corpora.
        batch_size: rows of a global batch.
        seed: of the first place.
    """

    def __init__(self, weights: Sequence[float], batch_size: int, seed: int) -> None:
        self.period = STEPS * batch_size
        exact = np.array(weights) / sum(weights) * self.period
        self.counts = np.floor(exact).astype(np.int64)
        largest = np.argsort(self.counts - exact, kind="stable")[: self.period - self.counts.sum()]
        self.counts[largest] += 1
        self.ends = np.cumsum(self.counts)
        near = round(self.period * 0.618)
        self.stride = next(n for n in range(near, 0, -1) if math.gcd(n, self.period) == 1)
        self.first = derive_key(seed, "shares") % self.period

    def __call__(self, numbers: Indices) -> tuple[Indices, Indices]:
        """The corpus of each row, and the number of the row among those of its corpus.

        Args:
            numbers: (N,) of the rows in the run.
        """
        repeats, places = np.divmod(numbers, self.period)
        places = (places * self.stride + self.first) % self.period
        corpora = np.searchsorted(self.ends, places, side="right")
        starts = self.ends - self.counts
        return corpora, repeats * self.counts[corpora] + places - starts[corpora]
