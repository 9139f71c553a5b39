"""Token ids in shards: a split in several files, which are read as one array.

All shards of a split have the same number of tokens, but the last one, which may have fewer. Rows may cross their ends.
"""

import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlm_dist.texts.finding import Split

Tokens = npt.NDArray[np.unsignedinteger[Any]]
Indices = npt.NDArray[np.int64]


class Shards:
    """The token ids of a split in shards, (N,): what readers need of an array. `np.array` copies them into one.

    Args:
        parts: the token ids of each shard, in order; at least one.
    """

    def __init__(self, parts: Sequence[Tokens]) -> None:
        self.parts = parts
        lengths = [len(part) for part in parts]
        self.ends = np.cumsum(lengths)
        self.starts = self.ends - lengths
        self.dtype = parts[0].dtype
        self.nbytes = len(self) * self.dtype.itemsize

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, tokens: slice) -> "Shards":
        """Consecutive tokens. Like a slice of an array, it is a view."""
        start, stop, _ = tokens.indices(len(self))
        bounds = zip(self.parts, self.starts.tolist(), strict=True)
        return Shards([part[max(start - first, 0) : max(stop - first, 0)] for part, first in bounds])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Tokens:
        return np.concatenate(self.parts, dtype=dtype)

    def reshape(self, count: int, length: int) -> "ShardedRows":
        """The tokens as rows, (count, length)."""
        return ShardedRows(self, count, length)

    def read(self, starts: Indices, length: int) -> Tokens:
        """Read rows of `length` tokens from their first tokens on, (B,) -> (B, length). The tokens go round."""
        rows = np.empty((len(starts), length), dtype=self.dtype)
        shards = np.searchsorted(self.ends, starts, side="right")
        crosses = starts + length > self.ends[shards]
        for shard in np.unique(shards[~crosses]).tolist():
            chosen = (shards == shard) & ~crosses
            rows[chosen] = read_rows(self.parts[shard], starts[chosen] - self.starts[shard], length)
        for row in np.flatnonzero(crosses).tolist():
            self._fill(rows[row], int(starts[row]))
        return rows

    def _fill(self, row: Tokens, start: int) -> None:
        """Fill a row that crosses the ends of shards."""
        while len(row):
            shard = int(np.searchsorted(self.ends, start, side="right"))
            part = self.parts[shard][start - self.starts[shard] :][: len(row)]
            row[: len(part)] = part
            row, start = row[len(part) :], (start + len(part)) % len(self)


class ShardedRows:
    """Rows of token ids in shards, (count, length): what readers need of a matrix."""

    def __init__(self, tokens: Shards, count: int, length: int) -> None:
        self.tokens = tokens
        self.shape = count, length

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Indices) -> Tokens:
        """Read rows, (B,) -> (B, length)."""
        return self.tokens.read(rows * self.shape[1], self.shape[1])


StoredTokens = Tokens | Shards
StoredRows = Tokens | ShardedRows


def read_rows(tokens: StoredTokens, starts: Indices, length: int) -> Tokens:
    """Read rows of `length` tokens from their first tokens on, (B,) -> (B, length). The tokens go round."""
    if isinstance(tokens, Shards):
        return tokens.read(starts, length)
    return tokens.take(starts[:, None] + np.arange(length), mode="wrap")


def file_name(split: Split, shard: int | None = None) -> str:
    """The name of the file of a split, or of one of its shards."""
    return f"{split}.bin" if shard is None else f"{split}-{shard:05}.bin"


class SplitWriter:
    """Appends token ids to the file of a split, or to shards: a new one whenever one is full.

    Args:
        folder: of the corpus.
        split: the split.
        dtype: of the ids in the files.
        shard_tokens: tokens of a shard; None for one file.

    Attributes:
        digests: the SHA-256 of all tokens, and of each shard by its name.
    """

    def __init__(self, folder: Path, split: Split, dtype: np.dtype[Any], shard_tokens: int | None) -> None:
        self.folder = folder
        self.split = split
        self.dtype = dtype
        self.shard_tokens = shard_tokens
        self.digests = {str(split): hashlib.sha256()}
        self._open()

    def write(self, ids: Tokens) -> None:
        """Append token ids."""
        ids = ids.astype(self.dtype)
        while len(ids):
            if not self.room:
                self.close()
                self._open()
            content, ids = ids[: self.room].tobytes(), ids[self.room :]
            self.file.write(content)
            for digest in {self.digests[self.split], self.newest_digest}:
                digest.update(content)
            self.room -= len(content) // self.dtype.itemsize

    def close(self) -> None:
        """Write the file to the disk and close it."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()

    def _open(self) -> None:
        """Open the next file."""
        if self.shard_tokens is None:
            name, self.newest_digest = file_name(self.split), self.digests[self.split]
        else:
            name = file_name(self.split, len(self.digests) - 1)
            self.newest_digest = self.digests[name] = hashlib.sha256()
        self.file = (self.folder / name).open("wb")
        self.room = self.shard_tokens or sys.maxsize
