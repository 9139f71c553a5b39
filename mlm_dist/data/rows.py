"""The rows of a corpus: its tokens, cut end to end into rows of T, from a place that may differ between epochs."""

import numpy as np
import numpy.typing as npt

from mlm_dist.data.corpus import Tokens
from mlm_dist.data.randomness import derive_key, permute
from mlm_dist.data.sampler import Indices, Selection


class TrainingRows:
    """Rows of training tokens.

    Without a shift, row i starts at token i * T in every epoch, and the tokens after the last row are never read. With
    it, the first row of each epoch starts at another token below T, and the tokens go round: the tokens before it
    follow those at the end. So each epoch cuts at other places, and reads all tokens but for less than a row.

    Args:
        tokens: (N,) token ids.
        block_size: tokens per row, T.
        seed: of the shifts.
        is_shifted: whether the rows are shifted.
    """

    def __init__(self, tokens: Tokens, block_size: int, seed: int, is_shifted: bool) -> None:
        self.tokens = tokens
        self.block_size = block_size
        self.is_shifted = is_shifted
        self.key = derive_key(seed, "shift")
        self.columns = np.arange(block_size)

    def __len__(self) -> int:
        return len(self.tokens) // self.block_size

    def read(self, selection: Selection) -> Tokens:
        """The tokens of the selected rows, (B, T)."""
        starts = selection.rows * self.block_size
        if self.is_shifted:
            starts += self.shifts(selection.epochs)
        rows: Tokens = self.tokens.take(starts[:, None] + self.columns, mode="wrap")
        return rows

    def shifts(self, epochs: Indices) -> npt.NDArray[np.int64]:
        """The token at which the first row of each epoch starts: below T, and different in any T epochs in a row."""
        return permute(epochs % self.block_size, self.block_size, self.key)
