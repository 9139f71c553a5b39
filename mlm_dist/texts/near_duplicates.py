"""Finds documents that are nearly the same: MinHash signatures of their words by `rensa`, compared band by band.

Broder 1997, "On the resemblance and containment of documents". Memory takes 25 bytes a document; the signatures, of 512
bytes, are in a temporary file.
"""

import functools
import tempfile

import numpy as np
import numpy.typing as npt

from mlm_dist.errors import UserError

SHINGLE_WORDS = 3
PERMUTATIONS = 128
SEED = 1
BAND = 4  # permutations that two documents must share to be compared
SIMILARITY = 0.5  # of two documents: the runs of `SHINGLE_WORDS` words in both by those in either
BATCH_BYTES = 1 << 20
CHUNK_PAIRS = 1 << 14
SPACE = 0x20  # and the controls below it
BASE = 0x9E3779B97F4A7C15  # of polynomial hashes: 2**64 / golden ratio, odd

Hashes = npt.NDArray[np.uint64]


class NearDuplicates:
    """Takes documents in their order, and finds those that are nearly the same as an earlier one.

    Raises:
        UserError: `rensa` is not installed.
    """

    def __init__(self) -> None:
        try:
            import rensa  # noqa: PLC0415 (an extra)
        except ImportError as error:
            raise UserError("near_duplicates needs rensa: run `pip install 'mlm_dist[dedup]'`") from error
        self.sign = rensa.RMinHash.digest_matrix_from_flat_token_hashes
        self.signatures = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as this object)
        self.parts: list[bytes] = []  # that have no signature yet
        self.is_last: list[bool] = []  # whether its document ends with each part
        self.size = 0
        self.begun = np.full(PERMUTATIONS, np.iinfo(np.uint32).max, dtype=np.uint32)  # of the unfinished document

    def add(self, content: bytes) -> None:
        """Add a part of a document, in UTF-8."""
        for start in range(0, len(content), BATCH_BYTES):
            self.parts.append(content[start : start + BATCH_BYTES])
            self.is_last.append(False)
            self.size += len(self.parts[-1])
            if self.size >= BATCH_BYTES:
                self._sign()

    def end_document(self) -> None:
        """End the document of the parts before."""
        self.parts.append(b"")
        self.is_last.append(True)

    def _sign(self) -> None:
        """Write the signatures of the documents that have ended. That of a document is the minimum over its parts."""
        if not self.parts:
            return
        hashes, offsets = shingle_hashes(self.parts)
        rows = np.array(self.sign(hashes, offsets, PERMUTATIONS, SEED).to_rows(), dtype=np.uint32)
        rows[0] = np.minimum(rows[0], self.begun)
        starts = np.flatnonzero([True, *self.is_last[:-1]])
        minima = np.minimum.reduceat(rows, starts)
        whole = len(minima) if self.is_last[-1] else len(minima) - 1
        self.signatures.write(minima[:whole].tobytes())
        self.begun[:] = np.iinfo(np.uint32).max if whole == len(minima) else minima[-1]
        self.parts, self.is_last, self.size = [], [], 0

    def find(self) -> npt.NDArray[np.bool_]:
        """For each document, (N,), whether it is nearly the same as an earlier one."""
        self._sign()
        self.signatures.flush()
        count = self.signatures.tell() // (4 * PERMUTATIONS)
        if not count:
            return np.zeros(0, dtype=bool)
        signatures = np.memmap(self.signatures, dtype=np.uint32, mode="r", shape=(count, PERMUTATIONS))
        is_near = np.zeros(count, dtype=bool)
        for first in range(0, PERMUTATIONS, BAND):
            keys = band_keys(signatures, first)
            order = np.argsort(keys, kind="stable")  # within a bucket, earlier documents come first
            is_start = np.diff(keys[order], prepend=keys[order[:1]] + 1) != 0
            starts = np.maximum.accumulate(np.where(is_start, np.arange(count), 0))
            (others,) = np.nonzero(~is_start)
            for earlier in (starts[others], others - 1):  # the first document of the bucket, and the one before
                mark_similar(signatures, order[earlier], order[others], is_near)
        return is_near


def band_keys(signatures: npt.NDArray[np.uint32], first: int) -> Hashes:
    """A hash of one band of each signature, (N,)."""
    keys = np.zeros(len(signatures), dtype=np.uint64)
    for start in range(0, len(signatures), CHUNK_PAIRS):
        for column in signatures[start : start + CHUNK_PAIRS, first : first + BAND].T:
            keys[start : start + CHUNK_PAIRS] = mixed(keys[start : start + CHUNK_PAIRS] * BASE + column)
    return keys


def mark_similar(
    signatures: npt.NDArray[np.uint32],
    earlier: npt.NDArray[np.int64],
    later: npt.NDArray[np.int64],
    is_near: npt.NDArray[np.bool_],
) -> None:
    """Mark the later documents of pairs (P,) that are similar to the earlier ones."""
    unknown = ~is_near[later]
    earlier, later = earlier[unknown], later[unknown]
    for start in range(0, len(later), CHUNK_PAIRS):
        pairs = slice(start, start + CHUNK_PAIRS)
        similarity = (signatures[earlier[pairs]] == signatures[later[pairs]]).mean(axis=1)
        is_near[later[pairs][similarity >= SIMILARITY]] = True


def shingle_hashes(parts: list[bytes]) -> tuple[Hashes, Hashes]:
    """Hashes of all runs of `SHINGLE_WORDS` words. At the end of a part, words are missing.

    Returns:
        hashes: (words,) a hash of the words from each one on.
        offsets: (parts + 1,) where the hashes of each part start, and the end of the last.
    """
    text = np.frombuffer(b"".join([b" ", *(part + b" " for part in parts)]), dtype=np.uint8)
    is_word = text > SPACE
    starts = np.flatnonzero(is_word[1:] & ~is_word[:-1]) + 1
    ends = np.flatnonzero(is_word[:-1] & ~is_word[1:]) + 1
    powers, inverses = powers_of_base(2 * BATCH_BYTES + 2 * len(parts))
    sums = np.cumsum(text * powers[: len(text)], dtype=np.uint64)
    words: Hashes = mixed((sums[ends - 1] - sums[starts - 1]) * inverses[starts])
    part_starts = np.cumsum([1, *(len(part) + 1 for part in parts)])
    offsets = np.searchsorted(starts, part_starts)
    part_of_word = np.repeat(np.arange(len(parts)), np.diff(offsets))
    hashes = words.copy()
    for distance in range(1, SHINGLE_WORDS):
        hashes = hashes * np.uint64(BASE)
        is_inside = part_of_word[distance:] == part_of_word[:-distance]
        hashes[:-distance] += np.where(is_inside, words[distance:], 0).astype(np.uint64)
    return mixed(hashes), np.asarray(offsets, dtype=np.uint64)


@functools.lru_cache(maxsize=1)
def powers_of_base(count: int) -> tuple[Hashes, Hashes]:
    """The powers of `BASE` and of its inverse modulo 2**64, (count,) each."""
    bases = (np.uint64(BASE), np.uint64(pow(BASE, -1, 1 << 64)))
    powers, inverses = (
        np.cumprod(np.append(np.uint64(1), np.full(count - 1, base)), dtype=np.uint64) for base in bases
    )
    return powers, inverses


def mixed(hashes: Hashes) -> Hashes:
    """Mix the bits of hashes: the finalizer of splitmix64 (Steele et al. 2014)."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))
