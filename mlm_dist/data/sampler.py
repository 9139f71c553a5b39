"""Which rows a step reads: a function of the seed and the step, whatever the number of ranks."""

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset, DistributedSampler

from mlm_dist.data.randomness import permute, salt
from mlm_dist.errors import UserError

Rows = npt.NDArray[np.int64]


class Selection(NamedTuple):
    """The rows that one rank reads at a step.

    Attributes:
        step: counted from 0 at the start of the run.
        epoch: that the step falls in.
        rows: (B,) numbers of rows of the corpus.
        places: (B,) where each of them stands in the global batch.
    """

    step: int
    epoch: int
    rows: Rows
    places: Rows


class GlobalBatchSampler(DistributedSampler[Any]):
    """Yields this rank's rows of one global batch after another, from `start_step` on and without end.

    Every epoch is a fresh permutation of all rows, cut to whole global batches. Rank r takes every world_size-th
    row of a batch from the r-th on, `DistributedSampler`'s stride; since the cut does not depend on the world size
    (as `DistributedSampler`'s own does), any number of ranks reads the same rows at the same step.

    Args:
        row_count: rows of the corpus.
        batch_size: rows of a global batch; a multiple of `world_size`.
        start_step: the first step, counted from 0 at the start of the run, that iteration yields.

    Raises:
        UserError: there are fewer rows than a global batch has.
    """

    def __init__(
        self, row_count: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1, start_step: int = 0
    ) -> None:
        if row_count < batch_size:
            raise UserError(
                f"the corpus has {row_count} rows to train on, fewer than one batch of train.batch_size {batch_size}: "
                f"bring more text, or lower train.batch_size or model.block_size"
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
        places = np.arange(self.rank, self.batch_size, self.num_replicas)
        key = salt(self.seed, epoch, "order")
        return Selection(step, epoch, permute(step_of_epoch * self.batch_size + places, self.row_count, key), places)

    def __len__(self) -> int:
        """Steps in an epoch."""
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[Selection]:
        step = self.start_step
        while True:
            yield self.select(step)
            step += 1
