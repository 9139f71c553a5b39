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
        epochs: (B,) the epoch of each row.
        rows: (B,) row indices in the corpus.
        batch_indices: (B,) the index of each row in the global batch.
    """

    step: int
    epochs: Indices
    rows: Indices
    batch_indices: Indices

    @classmethod
    def of_epoch(cls, step: int, epoch: int, rows: Indices, batch_indices: Indices) -> "Selection":
        """Rows that are all of the same epoch."""
        return cls(step, np.full(len(rows), epoch), rows, batch_indices)

    def keys(self, seed: int, purpose: str) -> npt.NDArray[np.int32]:
        """The key of each row's hashes, (B,): a function of the seed, the epoch of the row and the purpose."""
        epochs, index = np.unique(self.epochs, return_inverse=True)
        keys = [derive_key(seed, epoch, purpose) for epoch in epochs.tolist()]
        return np.array(keys, dtype=np.int32)[index]


class GlobalBatchSampler(DistributedSampler[Any]):
    """Yields this rank's rows of each global batch, from `start_step` on, without end.

    Each epoch is a new permutation of all rows. Rank r takes every world_size-th row of a batch from the r-th on, as
    `DistributedSampler` does. Since the batches do not depend on the world size (unlike those of `DistributedSampler`),
    any number of ranks reads the same rows at the same step.

    Args:
        row_count: rows of the corpus.
        batch_size: rows of a global batch; a multiple of `world_size`.
        start_step: the first step that iteration yields, from 0 at the start of the run.
        cuts_epochs: whether an epoch is cut to whole global batches. Otherwise it has all rows, and a batch may have
            rows of two epochs.

    Attributes:
        rows_per_epoch: rows that an epoch reads.

    Raises:
        UserError: the corpus has fewer rows than a global batch.
    """

    def __init__(
        self,
        row_count: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        cuts_epochs: bool = True,
    ) -> None:
        if row_count < batch_size:
            raise UserError(
                f"the corpus has {row_count} rows to train on, fewer than one batch of train.batch_size {batch_size}: "
                f"add more text, or lower train.batch_size or model.block_size"
            )
        self.row_count = row_count
        self.batch_size = batch_size
        self.rows_per_epoch = row_count // batch_size * batch_size if cuts_epochs else row_count
        self.start_step = start_step
        rows = cast(Dataset[Any], range(self.rows_per_epoch))
        super().__init__(rows, num_replicas=world_size, rank=rank, seed=seed, drop_last=True)

    def select(self, step: int) -> Selection:
        """The rows that this rank reads at a step."""
        batch_indices = np.arange(self.rank, self.batch_size, self.num_replicas)
        epochs, rows = np.divmod(step * self.batch_size + batch_indices, self.rows_per_epoch)
        for epoch in np.unique(epochs).tolist():
            key = derive_key(self.seed, epoch, "order")
            rows[epochs == epoch] = permute(rows[epochs == epoch], self.row_count, key)
        return Selection(step, epochs, rows, batch_indices)

    def __len__(self) -> int:
        """Whole global batches in an epoch."""
        return self.rows_per_epoch // self.batch_size

    def __iter__(self) -> Iterator[Selection]:
        step = self.start_step
        while True:
            yield self.select(step)
            step += 1
