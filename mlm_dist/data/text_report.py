"""What the texts of a corpus are like: how long, and how often documents and lines repeat.

Memory does not grow with the text: lines are counted by 8-byte hashes, and by those of a sample if there are many.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xxhash

from mlm_dist.data.encoding import Batch
from mlm_dist.texts.document_list import DocumentList
from mlm_dist.texts.finding import SPLITS

# In bytes of UTF-8. Shorter lines ("Yes.", "CHAPTER I") repeat in every text, and longer ones are compared up to there.
SHORTEST_LINE = 20
LONGEST_LINE = 1 << 16
MOST_LINES = 1 << 22  # distinct lines that are counted exactly

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class TextReport:
    """What the texts of a corpus are like.

    Attributes:
        characters_per_token: characters by tokens, over both splits.
        duplicate_documents: documents with the same text as an earlier one.
        near_duplicate_documents: documents that are nearly the same as an earlier one; None if that is not known.
        dropped_documents: duplicates that were left out of the corpus.
        lines: lines of at least `SHORTEST_LINE` bytes, over both splits.
        duplicate_lines: the fraction of these lines that repeat an earlier one of their split.
        validation_lines_in_training: the fraction of the validation lines that are training lines too.
    """

    characters_per_token: float
    duplicate_documents: int
    near_duplicate_documents: int | None
    dropped_documents: int
    lines: int
    duplicate_lines: float
    validation_lines_in_training: float

    def __str__(self) -> str:
        near = "not looked for" if self.near_duplicate_documents is None else f"{self.near_duplicate_documents:,}"
        dropped = f" ({self.dropped_documents:,} of them dropped)" if self.dropped_documents else ""
        return (
            f"{self.characters_per_token:.2f} characters per token; duplicate documents: {self.duplicate_documents:,}, "
            f"nearly the same: {near}{dropped}; repeated lines: {self.duplicate_lines:.1%}, validation lines that are "
            f"training lines too: {self.validation_lines_in_training:.1%}"
        )


class LineCounts:
    """Counts lines and distinct lines. Beyond `MOST_LINES` distinct ones, it counts a sample, chosen by hash."""

    def __init__(self) -> None:
        self.total = 0
        self.hashes = np.zeros(0, dtype=np.uint64)  # of the distinct lines of the sample
        self.counts = np.zeros(0, dtype=np.int64)  # how often each of them occurs
        self.waiting: list[Hashes] = []
        self.level = 0  # a hash is in the sample if this many of its bits are 0

    def add(self, hashes: Hashes) -> None:
        """Count lines, given their hashes."""
        self.total += len(hashes)
        self.waiting.append(in_sample(hashes, self.level))
        if sum(map(len, self.waiting)) > MOST_LINES // 4:
            self.collect()

    def collect(self) -> None:
        """Count the waiting lines, and halve the sample while it is too large."""
        new, new_counts = np.unique(np.concatenate([self.hashes[:0], *self.waiting]), return_counts=True)
        self.waiting = []
        self.hashes, indices = np.unique(np.concatenate([self.hashes, new]), return_inverse=True)
        counts = np.concatenate([self.counts, new_counts])
        self.counts = np.bincount(indices, counts, len(self.hashes)).astype(np.int64)
        while len(self.hashes) > MOST_LINES:
            self.reduce(self.level + 1)

    def reduce(self, level: int) -> None:
        """Keep the part of the sample at this level."""
        self.level = level
        is_kept = self.hashes & np.uint64((1 << level) - 1) == 0
        self.hashes, self.counts = self.hashes[is_kept], self.counts[is_kept]


def in_sample(hashes: Hashes, level: int) -> Hashes:
    """The hashes of which the lowest `level` bits are 0."""
    return hashes[hashes & np.uint64((1 << level) - 1) == 0] if level else hashes


def line_hashes(text: str) -> Hashes:
    """A hash of each line of a text that has at least `SHORTEST_LINE` bytes without white space around it."""
    lines = [line for line in map(bytes.strip, text.encode().split(b"\n")) if len(line) >= SHORTEST_LINE]
    if max(map(len, lines), default=0) > LONGEST_LINE:
        lines = [line[:LONGEST_LINE] for line in lines]
    return np.array([*map(xxhash.xxh3_64_intdigest, lines)], dtype=np.uint64)


class TextCounts:
    """Counts the characters and lines of a corpus while it is written."""

    def __init__(self) -> None:
        self.characters = 0
        self.lines = {split: LineCounts() for split in SPLITS}
        self.begun = dict.fromkeys(SPLITS, "")  # the start of a line that continues in the next batch

    def add(self, batch: Batch) -> None:
        """Count the next pieces of a split."""
        self.characters += sum(map(len, batch.texts))
        text, rest = self.begun[batch.split] + "\n".join(batch.texts), ""
        if not batch.is_last:
            text, _, rest = text.rpartition("\n")
        self.begun[batch.split] = rest.lstrip()[:LONGEST_LINE]
        self.lines[batch.split].add(line_hashes(text))

    def report(self, documents: DocumentList, tokens: int) -> TextReport:
        """The report on a corpus of these documents with this many tokens."""
        train, val = self.lines["train"], self.lines["val"]
        for lines in (train, val):
            lines.collect()
        level = max(train.level, val.level)
        for lines in (train, val):
            lines.reduce(level)
        sampled = int(train.counts.sum() + val.counts.sum())
        repeated = sampled - len(train.hashes) - len(val.hashes)
        shared = int(val.counts[np.isin(val.hashes, train.hashes)].sum())
        is_copy = documents.is_copy
        near = documents.is_near
        return TextReport(
            characters_per_token=round(self.characters / tokens, 4),
            duplicate_documents=int(is_copy.sum()),
            near_duplicate_documents=None if near is None else int((near & ~is_copy).sum()),
            dropped_documents=len(is_copy) - len(documents),
            lines=train.total + val.total,
            duplicate_lines=round(repeated / max(1, sampled), 6),
            validation_lines_in_training=round(shared / max(1, int(val.counts.sum())), 6),
        )
