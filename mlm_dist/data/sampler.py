"""Which rows a step reads: a function of the seed and the step, whatever the number of ranks."""

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset, DistributedSampler

from mlm_dist.data.randomness import derive_key, permute
from mlm_dist.errors import UserError

Indices = npt.NDArray[np.int64]


class Selection(NamedTuple):
    """The rows that one rank reads at a step.

    Attributes:
        step: from 0 at the start of the run.
        epoch: of the step.
        rows: (B,) row indices in the corpus.
        batch_indices: (B,) the index of each row in the global batch.
    """

    step: int
    epoch: int
    rows: Indices
    batch_indices: Indices


class GlobalBatchSampler(DistributedSampler[Any]):
    """Yields this rank's rows of each global batch, from `start_step` on, without end.

    Each epoch is a new permutation of all rows, cut to whole global batches. Rank r takes every world_size-th row of a
    batch from the r-th on, as `DistributedSampler` does. Since the cut does not depend on the world size (unlike that
    of `DistributedSampler`), any number of ranks reads the same rows at the same step.

    Args:
        row_count: rows of the corpus.
        batch_size: rows of a global batch; a multiple of `world_size`.
        start_step: the first step that iteration yields, from 0 at the start of the run.

    Raises:
        UserError: the corpus has fewer rows than a global batch.
    """

    def __init__(
        self, row_count: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1, start_step: int = 0
    ) -> None:
        if row_count < batch_size:
            raise UserError(
                f"the corpus has {row_count} rows to train on, fewer than one batch of train.batch_size {batch_size}: "
                f"add more text, or lower train.batch_size or model.block_size"
            )
        self.row_count = row_count
        self.batch_size = batch_size
        self.steps_per_epoch = row_count // batch_size
        self.start_step = start_step
        rows_per_epoch = range(self.steps_per_epoch * batch_size)
        super().__init__(
            cast(Dataset[Any], rows_per_epoch), num_replicas=world_size, rank=rank, seed=seed, drop_last=True
        )

    def select(self, step: int) -> Selection:
        """The rows that this rank reads at a step."""
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        batch_indices = np.arange(self.rank, self.batch_size, self.num_replicas)
        key = derive_key(self.seed, epoch, "order")
        rows = permute(step_of_epoch * self.batch_size + batch_indices, self.row_count, key)
        return Selection(step, epoch, rows, batch_indices)

    def __len__(self) -> int:
        """Steps per epoch."""
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[Selection]:
        step = self.start_step
        while True:
            yield self.select(step)
            step += 1
