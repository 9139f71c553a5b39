"""The rows of corpora: their tokens, cut end to end into rows of T, from a place that may differ between epochs."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mlm_dist.config import Config
from mlm_dist.data.corpus import Corpus
from mlm_dist.data.mixture import Shares
from mlm_dist.data.randomness import derive_key, permute
from mlm_dist.data.sampler import GlobalBatchSampler, Indices, Selection
from mlm_dist.data.shards import StoredTokens, Tokens, read_rows
from mlm_dist.phases import Phases


class TrainingRows:
    """Rows of training tokens.

    Without a shift, row i starts at token i * T in every epoch, and the tokens after the last row are never read. With
    it, the first row of each epoch starts at another token below T, and the tokens go round: the tokens before it
    follow those at the end. So each epoch cuts at other places, and reads all tokens but for less than a row.

    Args:
        corpora: (N,) token ids of each corpus.
        block_size: tokens per row, T.
        seed: of the shifts.
        is_shifted: whether the rows are shifted.

    Attributes:
        counts: the number of rows of each corpus.
        dtype: the type that holds the ids of all corpora.
    """

    def __init__(self, corpora: Sequence[StoredTokens], block_size: int, seed: int, is_shifted: bool) -> None:
        self.corpora = corpora
        self.block_size = block_size
        self.is_shifted = is_shifted
        self.key = derive_key(seed, "shift")
        self.dtype = np.result_type(*(tokens.dtype for tokens in corpora))
        self.counts = [len(tokens) // block_size for tokens in corpora]

    def starts(self, selection: Selection) -> Indices:
        """The index of the first token of each selected row in its corpus, (B,)."""
        starts = selection.rows * self.block_size
        return starts + self.shifts(selection.epochs) if self.is_shifted else starts

    def read(self, selection: Selection) -> Tokens:
        """The tokens of the selected rows, (B, T)."""
        starts = self.starts(selection)
        rows = np.empty((len(starts), self.block_size), dtype=self.dtype)
        for corpus in np.unique(selection.corpora).tolist():
            chosen = selection.corpora == corpus
            rows[chosen] = read_rows(self.corpora[corpus], starts[chosen], self.block_size)
        return rows

    def shifts(self, epochs: Indices) -> npt.NDArray[np.int64]:
        """The token at which the first row of each epoch starts: below T, and different in any T epochs in a row."""
        return permute(epochs % self.block_size, self.block_size, self.key)


def choose_rows(
    config: Config, corpora: Sequence[Corpus], rank: int = 0, world_size: int = 1
) -> tuple[TrainingRows, GlobalBatchSampler]:
    """The training rows of a run, and the sampler that selects those of this rank at a step.

    Raises:
        UserError: the corpora have fewer rows than a global batch.
    """
    seed, batch_size = config.seed, config.train.batch_size
    is_shifted, is_mixture = config.data.shift_rows, len(corpora) > 1
    rows = TrainingRows([corpus.train for corpus in corpora], config.model.block_size, seed, is_shifted)
    cuts_epochs = not (is_shifted or is_mixture)
    shares = Shares(config.data.weights, batch_size, seed) if is_mixture else None
    phases = Phases(config) if config.train.phases else None
    return rows, GlobalBatchSampler(
        rows.counts, batch_size, seed, rank, world_size, cuts_epochs=cuts_epochs, shares=shares, phases=phases
    )
