"""Which rows a step reads: a function of the seed and the step, whatever the number of ranks."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset, DistributedSampler

from mlm_dist.data.randomness import derive_key, permute
from mlm_dist.errors import UserError
from mlm_dist.phases import Phases

Indices = npt.NDArray[np.int64]


class Selection(NamedTuple):
    """The rows that one rank reads at a step.

    Attributes:
        step: from 0 at the start of the run.
        epochs: (B,) the epoch of each row.
        rows: (B,) row indices in the corpus.
        batch_indices: (B,) the index of each row in the global batch.
        corpora: (B,) the index of each row's corpus.
    """

    step: int
    epochs: Indices
    rows: Indices
    batch_indices: Indices
    corpora: Indices

    @classmethod
    def of_epoch(cls, step: int, epoch: int, rows: Indices, batch_indices: Indices) -> "Selection":
        """Rows of one corpus that are all of the same epoch."""
        return cls(step, np.full(len(rows), epoch), rows, batch_indices, np.zeros(len(rows), dtype=np.int64))

    def pieces(self, count: int, batch_size: int) -> "Selection":
        """The pieces of the rows, each cut into `count`, as rows of their own: the first piece of every row, and so on.

        A batch of `batch_size` rows has `count * batch_size` pieces, which, like rows, go to the ranks in turn.
        """
        piece = np.arange(count)[:, None]
        rows, batch_indices = self.rows * count + piece, self.batch_indices + piece * batch_size  # (count, B) each
        epochs, corpora = np.tile(self.epochs, count), np.tile(self.corpora, count)
        return Selection(self.step, epochs, rows.ravel(), batch_indices.ravel(), corpora)

    def names(self) -> list[int | str]:
        """The rows in messages: their indices; of a corpus after the first, with its index before them: `1:57`."""
        pairs = zip(self.corpora.tolist(), self.rows.tolist(), strict=True)
        return [f"{corpus}:{row}" if corpus else row for corpus, row in pairs]

    def keys(self, seed: int, purpose: str) -> npt.NDArray[np.int32]:
        """The key of each row's hashes, (B,): a function of the seed, the row's corpus and epoch, and the purpose."""
        keys = np.empty(len(self.rows), dtype=np.int32)
        for corpus, epoch, chosen in groups(self.corpora, self.epochs):
            keys[chosen] = epoch_key(seed, corpus, epoch, purpose)
        return keys


def groups(corpora: Indices, epochs: Indices) -> Iterator[tuple[int, int, npt.NDArray[np.bool_]]]:
    """The corpora and epochs of rows, (B,) each: each pair with the rows that have it, (B,)."""
    for corpus, epoch in np.unique(np.stack([corpora, epochs]), axis=1).T.tolist():
        yield corpus, epoch, (corpora == corpus) & (epochs == epoch)


def epoch_key(seed: int, corpus: int, epoch: int, purpose: str) -> int:
    """The key of an epoch of a corpus."""
    return derive_key(seed, epoch, purpose, corpus) if corpus else derive_key(seed, epoch, purpose)


class GlobalBatchSampler(DistributedSampler[Any]):
    """Selects this rank's rows of the global batch of a step. Iteration yields those from `start_step` on.

    Each epoch is a new permutation of all rows. Rank r takes every world_size-th row of a batch from the r-th on, as
    `DistributedSampler` does. Since the batches do not depend on the world size (unlike those of `DistributedSampler`),
    any number of ranks reads the same rows at the same step.

    Args:
        row_count: rows of the corpus, or of each corpus, which has at least one.
        batch_size: rows of a global batch; a multiple of `world_size`.
        start_step: the first step that iteration yields, from 0 at the start of the run.
        cuts_epochs: whether an epoch is cut to whole batches of `batch_size` rows. Otherwise it has all rows, and a
            batch may have rows of two epochs, as it always may with phases.
        shares: for several corpora, as `Shares` in data/mixture.py. Each corpus has its own epochs.
        phases: of the run, if its global batches differ in size; `batch_size` is the largest one then.

    Attributes:
        rows_per_epoch: rows that an epoch reads, of all corpora together.

    Raises:
        UserError: the corpora have fewer rows than a global batch.
    """

    def __init__(
        self,
        row_count: int | Sequence[int],
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        cuts_epochs: bool = True,
        shares: Callable[[Indices], tuple[Indices, Indices]] | None = None,
        phases: Phases | None = None,
    ) -> None:
        self.row_counts = np.atleast_1d(row_count)
        total = int(self.row_counts.sum())
        if total < batch_size:
            raise UserError(
                f"the corpus has {total} rows to train on, fewer than one batch of train.batch_size {batch_size}: "
                f"add more text, or lower train.batch_size or model.block_size"
            )
        self.batch_size = batch_size
        self.shares = shares
        self.phases = phases
        self.row_limits = self.row_counts // batch_size * batch_size if cuts_epochs else self.row_counts
        self.rows_per_epoch = int(self.row_limits.sum())
        self.start_step = start_step
        rows = cast(Dataset[Any], range(self.rows_per_epoch))
        super().__init__(rows, num_replicas=world_size, rank=rank, seed=seed, drop_last=True)

    def select(self, step: int) -> Selection:
        """The rows that this rank reads at a step."""
        batch_indices = np.arange(self.rank, self.rows_at(step), self.num_replicas)
        numbers = batch_indices + (self.phases.rows_before(step) if self.phases else step * self.batch_size)
        corpora, numbers = self.shares(numbers) if self.shares else (np.zeros_like(numbers), numbers)
        epochs, rows = np.divmod(numbers, self.row_limits[corpora])
        for corpus, epoch, chosen in groups(corpora, epochs):
            key = epoch_key(self.seed, corpus, epoch, "order")
            rows[chosen] = permute(rows[chosen], int(self.row_counts[corpus]), key)
        return Selection(step, epochs, rows, batch_indices, corpora)

    def rows_at(self, step: int) -> int:
        """Rows of the global batch of a step."""
        return self.phases.at(step).batch_size if self.phases else self.batch_size

    def __len__(self) -> int:
        """Whole global batches in an epoch."""
        return self.rows_per_epoch // self.batch_size

    def __iter__(self) -> Iterator[Selection]:
        step = self.start_step
        while True:
            yield self.select(step)
            step += 1
