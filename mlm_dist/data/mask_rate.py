"""The mask rate: which fraction of each row is masked. It is constant, scheduled over the run, or sampled for each row.

Samples are stratified: each of the B rows of a global batch samples its rate from a different one of B equal parts of
the range. This removes most of the noise that comes from batches with more masked tokens than others (Kingma et al.
2021, arXiv 2107.00630, do the same with the times of a diffusion model).
"""

import itertools
import math

import numpy as np
import numpy.typing as npt

from mlm_dist.config import MaskingConfig
from mlm_dist.data.randomness import BITS, GOLDEN, hash32
from mlm_dist.data.sampler import Selection

Rates = npt.NDArray[np.float64]


class MaskRate:
    """The mask rate of each row, as a function of step, epoch and row.

    Args:
        masking: its keys `mask_prob`, `mask_prob_end`, `mask_prob_change_fraction` and `mask_prob_range`.
        seed: of the samples.
        batch_size: rows of a global batch.
        max_iters: steps of the run. A schedule ends at the last one.

    Attributes:
        is_sampled: whether each row samples its rate from a range.
        highest: the highest rate of the run.
    """

    def __init__(self, masking: MaskingConfig, seed: int, batch_size: int, max_iters: int) -> None:
        self.is_sampled = masking.is_sampled
        self.start, self.end = masking.endpoints
        self.highest = max(self.start, self.end)
        self.seed = seed
        self.last_step = max(1, max_iters - 1)
        self.change_start = (1 - masking.mask_prob_change_fraction) * self.last_step
        # Neighbouring rows get distant parts of the range, so that the rows of one process or one micro-batch are
        # spread over the range as well.
        self.strata = np.arange(batch_size) * golden_stride(batch_size) % batch_size

    def __call__(self, selection: Selection) -> Rates:
        """The rate of each row, (B,)."""
        if self.is_sampled:
            keys = hash32(selection.rows.astype(np.int32)) ^ selection.keys(self.seed, "rate")
            jitter = ((hash32(keys + np.int32(GOLDEN)) >> (32 - BITS)) & ((1 << BITS) - 1)) + 1
            return self._rate((self.strata[selection.batch_indices] + jitter / (1 << BITS)) / len(self.strata))
        progress = (selection.step - self.change_start) / (self.last_step - self.change_start)
        progress = min(1.0, max(0.0, progress))
        return np.full(len(selection.rows), self.start + (self.end - self.start) * progress)

    def highest_by_index(self) -> Rates:
        """The highest rate of the row at each index of a global batch, (batch_size,)."""
        if self.is_sampled:
            return self._rate((self.strata + 1) / len(self.strata))
        return np.full(len(self.strata), self.highest)

    def _rate(self, quantiles: Rates) -> Rates:
        return np.minimum(self.start + (self.end - self.start) * quantiles, self.highest)


def golden_stride(count: int) -> int:
    """The number nearest to count / golden ratio that has no factor in common with `count`."""
    near = round(0.618 * count)
    candidates = (n for distance in itertools.count() for n in (near - distance, near + distance))
    return next(n for n in candidates if n >= 0 and math.gcd(n, count) == 1)
