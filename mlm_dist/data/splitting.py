"""Chooses the validation split (ends of long documents, whole short documents) and checks that it is usable."""

import dataclasses

import numpy as np
import numpy.typing as npt

from mlm_dist.data.documents import DocumentIndex
from mlm_dist.output import warn
from mlm_dist.texts.document_list import DocumentList
from mlm_dist.texts.finding import Split

# In bytes. A shorter end is a few sentences without context, on which the loss is higher than on whole documents.
SHORTEST_END = 1024

# In tokens. A mask rate of 0.15 masks 75 of them.
FEWEST_TOKENS = 500

# In nats. The ends of 40 novels differ by at most 0.22 from the rest, and whole novels by at most 0.55. Source code,
# another language and text in capitals differ by at least 2.2.
LARGEST_DIFFERENCE = 1.0

CHUNK_TOKENS = 256
SAMPLED_EVERY = 10


def hold_out(documents: DocumentList, fraction: float) -> DocumentList:
    """Choose the validation split: a fraction of the bytes, unless the user gave files for it.

    The end of a document becomes validation text if it has at least `SHORTEST_END` bytes. Shorter documents are chosen
    whole, by a hash of their content, so that the choice does not depend on names or order, and copies of a document
    are always in the same split. If the result has less than half of the wanted bytes, as with a single short document,
    the ends of the other short documents are added.

    Args:
        documents: the documents.
        fraction: the fraction of the bytes, at least 0 and below 1.

    Returns:
        The same documents in the same order.
    """
    if any(file.is_validation for file in documents.files):
        return documents
    sizes = np.where(documents.is_kept, documents.sizes, 0)
    ends = sizes - np.rint(sizes * (1 - fraction)).astype(np.int64)
    is_short = ends < SHORTEST_END
    is_whole = choose_whole(documents.hashes, np.where(is_short, sizes, 0), fraction)
    val_size = ends[~is_short].sum() + sizes[is_whole].sum()
    if val_size >= fraction * sizes.sum() / 2:
        ends[is_short] = 0
    return dataclasses.replace(documents, val_starts=np.where(is_whole, 0, documents.sizes - ends))


def choose_whole(
    hashes: npt.NDArray[np.uint64], sizes: npt.NDArray[np.int64], fraction: float
) -> npt.NDArray[np.bool_]:
    """Choose documents with about this fraction of the bytes, by the hashes of their content. Copies stay together.

    Args:
        hashes: (N,) a hash of each document.
        sizes: (N,) its size in bytes; 0 if it is not to be chosen.
        fraction: the fraction of the bytes.

    Returns:
        (N,) whether each document is chosen.
    """
    unique, groups = np.unique(hashes, return_inverse=True)
    group_sizes = np.bincount(groups, sizes, len(unique))
    wanted, size = fraction * float(sizes.sum()), 0.0
    is_chosen = np.zeros(len(unique), dtype=bool)
    for group, group_size in enumerate(group_sizes.tolist()):
        if abs(size + group_size - wanted) < abs(size - wanted):
            is_chosen[group] = True
            size += group_size
    return is_chosen[groups] & (sizes > 0)


def describe_validation(documents: DocumentIndex) -> str:
    """The validation split in words: `the ends of 40 documents`; nothing if there is none."""
    ends = whole = 0
    for counts in documents.counts():
        has_train, has_val = (counts > 0).T
        ends += int((has_train & has_val).sum())
        whole += int((~has_train).sum())
    if ends and whole:
        return f"the ends of {plural(ends)} and {whole:,} whole {'one' if whole == 1 else 'ones'}"
    if ends:
        return f"the ends of {plural(ends)}"
    return plural(whole, "whole ") if whole else ""


def plural(number: int, kind: str = "") -> str:
    """A number of documents in words."""
    return f"{number:,} {kind}document{'' if number == 1 else 's'}"


class TokenCounts:
    """Counts of each token in both splits, updated while a corpus is written.

    A tenth of the training tokens, in evenly spread chunks, is counted separately as a sample. How well the others
    predict the sample shows how well they should predict the validation tokens.
    """

    def __init__(self, vocab_size: int) -> None:
        self.train, self.sample, self.val = (np.zeros(vocab_size, dtype=np.int64) for _ in range(3))
        self.position = 0  # the index of the next training token

    def add(self, split: Split, ids: npt.NDArray[np.uint32]) -> None:
        """Count the next ids of a split, (N,)."""
        if split == "val":
            self.val += np.bincount(ids, minlength=len(self.val))
            return
        period = CHUNK_TOKENS * SAMPLED_EVERY
        none = len(self.train)  # an id that is not counted
        before = self.position % period
        after = -(before + len(ids)) % period
        chunks = np.pad(ids, (before, after), constant_values=none).reshape(-1, period)
        self.train += np.bincount(chunks[:, :-CHUNK_TOKENS].ravel(), minlength=none + 1)[:none]
        self.sample += np.bincount(chunks[:, -CHUNK_TOKENS:].ravel(), minlength=none + 1)[:none]
        self.position += len(ids)

    def difference(self) -> float:
        """How much worse the training frequencies predict the validation tokens than the sample, in nats per token.

        Returns:
            The difference of the cross-entropies; 0 if there are too few tokens to compare.
        """
        if min(self.val.sum(), self.sample.sum()) < FEWEST_TOKENS:
            return 0.0
        log_probabilities = np.log((self.train + 1) / (self.train.sum() + len(self.train)))
        val, sample = (float(-log_probabilities @ counts / counts.sum()) for counts in (self.val, self.sample))
        return val - sample

    def warn(self) -> None:
        """Warn if the validation split is too small or too unlike the training tokens."""
        val_tokens = self.val.sum()
        if 0 < val_tokens < FEWEST_TOKENS and self.position > 20 * FEWEST_TOKENS:  # otherwise, the whole text is small
            warn(
                f"the validation split has only {val_tokens} tokens, too few to measure a loss reliably: increase "
                f"val_fraction, or choose whole documents with `prepare --val`"
            )
        if (difference := self.difference()) > LARGEST_DIFFERENCE:
            warn(
                f"the validation text is unlike the training text (less likely by {difference:.1f} nats per token): "
                f"the validation loss will say little about text like the training text"
            )
