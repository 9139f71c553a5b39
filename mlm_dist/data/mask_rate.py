"""What share of each row is hidden: a number, a schedule over the run, or drawn for each row from a range.

A draw is stratified: the rows of a global batch take one rate from each of as many equal parts of the range. Most of
the noise that comes from some batches hiding more than others is gone then (Kingma et al. 2021, arXiv 2107.00630, do
so with the times of a diffusion model).
"""

import math

import numpy as np
import numpy.typing as npt

from mlm_dist.config import MaskProb, is_range
from mlm_dist.data.randomness import BITS, GOLDEN, mix, salt
from mlm_dist.data.sampler import Selection

Rates = npt.NDArray[np.float64]


class MaskRate:
    """The dial: from the step, the epoch and the row to the share of the row that is hidden.

    Args:
        mask_prob: `masking.mask_prob`.
        seed: of the draws.
        batch_size: rows of a global batch.
        max_iters: steps of the run, at the last of which a schedule is at its end.

    Attributes:
        is_drawn: whether each row has a rate of its own, from a range.
        highest: rate that there may be.
    """

    def __init__(self, mask_prob: MaskProb, seed: int, batch_size: int, max_iters: int) -> None:
        self.is_drawn = is_range(mask_prob)
        self.start, self.end = endpoints(mask_prob)
        self.highest = max(self.start, self.end)
        self.seed = seed
        self.last_step = max(1, max_iters - 1)
        # Neighbouring rows get parts of the range that lie far apart, so that what one process or one micro-batch
        # has of a large batch is spread well too: the multiples of a number near batch_size / golden ratio.
        near = round(batch_size * 0.618)
        stride = next(
            n for n in sorted(range(batch_size + 1), key=lambda n: abs(n - near)) if math.gcd(n, batch_size) == 1
        )
        self.strata = np.arange(batch_size) * stride % batch_size

    def __call__(self, selection: Selection) -> Rates:
        """The rate of each row, (B,)."""
        if self.is_drawn:
            keys = mix(selection.rows.astype(np.int32)) ^ np.int32(salt(self.seed, selection.epoch, "rate"))
            jitter = ((mix(keys + np.int32(GOLDEN)) >> (32 - BITS)) & ((1 << BITS) - 1)) + 1
            return self._rate((self.strata[selection.places] + jitter / (1 << BITS)) / len(self.strata))
        progress = min(1.0, selection.step / self.last_step)
        return np.full(len(selection.rows), self.start + (self.end - self.start) * progress)

    def highest_by_place(self) -> Rates:
        """The highest rate that the row at each place of a global batch may have, (batch_size,)."""
        if self.is_drawn:
            return self._rate((self.strata + 1) / len(self.strata))
        return np.full(len(self.strata), self.highest)

    def _rate(self, quantiles: Rates) -> Rates:
        return np.minimum(self.start + (self.end - self.start) * quantiles, self.highest)


def endpoints(mask_prob: MaskProb) -> tuple[float, float]:
    """Where the dial stands at first and at last, or the ends of its range."""
    if isinstance(mask_prob, dict):
        return mask_prob["from"], mask_prob["to"]
    if isinstance(mask_prob, list):
        low, high = mask_prob
        return low, high
    return mask_prob, mask_prob


def mean_rate(mask_prob: MaskProb) -> float:
    """The share of the tokens that is hidden over a whole run."""
    return sum(endpoints(mask_prob)) / 2
