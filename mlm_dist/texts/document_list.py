"""The documents that a corpus is made of: what is known about each, and their texts, read again for each pass."""

import dataclasses
import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from mlm_dist.errors import UserError
from mlm_dist.fault_points import reached
from mlm_dist.texts.finding import TextFile, find_files
from mlm_dist.texts.near_duplicates import NearDuplicates
from mlm_dist.texts.pieces import PIECE_CHARACTERS, Piece, cut_text
from mlm_dist.texts.reading import Reading, check_encoding, read_documents
from mlm_dist.texts.records import BrokenRecords

MOST_NAMES = 5  # in the message about files without text
PROGRESS_BAR_BYTES = 1 << 28  # smaller files are read in a second


class DocumentPiece(NamedTuple):
    """A piece of a document, and the index of the document."""

    document: int
    piece: Piece


@dataclass(frozen=True)
class DocumentList:
    """The documents of some files, in their order. It takes 33 bytes a document, whatever their sizes.

    Attributes:
        files: the files.
        reading: how their texts are read.
        counts: (files,) the documents of each file.
        numbers: (N,) the line or row of its file at which each document starts.
        sizes: (N,) its size, in bytes of UTF-8.
        hashes: (N,) a hash of its text. Copies have the same.
        val_starts: (N,) where its validation text starts, in bytes of UTF-8: 0 if the whole document is validation
            text, its size if none of it is.
        is_kept: (N,) whether it becomes part of the corpus.
        is_near: (N,) whether it is nearly the same as an earlier one; None if that is not known.
    """

    files: list[TextFile]
    reading: Reading
    counts: npt.NDArray[np.int64]
    numbers: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    hashes: npt.NDArray[np.uint64]
    val_starts: npt.NDArray[np.int64]
    is_kept: npt.NDArray[np.bool_]
    is_near: npt.NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return int(self.is_kept.sum())

    @cached_property
    def size(self) -> int:
        """The bytes of all documents."""
        return int(self.sizes[self.is_kept].sum())

    @cached_property
    def is_copy(self) -> npt.NDArray[np.bool_]:
        """For each document, (N,), whether its text is that of an earlier one."""
        is_copy = np.ones(len(self.hashes), dtype=bool)
        is_copy[np.unique(self.hashes, return_index=True)[1]] = False
        return is_copy

    def without_duplicates(self) -> "DocumentList":
        """The documents without copies of earlier ones, nor those known to be nearly the same."""
        is_duplicate = self.is_copy if self.is_near is None else self.is_copy | self.is_near
        return dataclasses.replace(self, is_kept=~is_duplicate)

    def names(self) -> Iterator[str]:
        """The name of each document that is kept: that of its file, and the line or row if the file has several."""
        first = 0
        for file, count in zip(self.files, self.counts.tolist(), strict=True):
            kept = slice(first, first := first + count)
            numbers = self.numbers[kept][self.is_kept[kept]]
            has_records = file.format != "text" or self.reading.split == "line"
            yield from (f"{file.name}:{number}" if has_records else file.name for number in map(int, numbers))

    def pieces(self, piece_characters: int = PIECE_CHARACTERS) -> Iterator[DocumentPiece]:
        """Read all documents that are kept, in pieces.

        Raises:
            UserError: a file has changed since it was first read, or as `read_documents`.
        """
        index = 0
        for file, count in zip(self.files, self.counts.tolist(), strict=True):
            end = index + count
            broken = BrokenRecords(self.reading.skip_broken)
            for number, parts in read_documents(file, self.reading, broken, check=False):
                if index == end or self.numbers[index] != number:
                    raise changed(file.path)
                for piece in self._cut(index, parts, piece_characters):
                    if self.is_kept[index]:
                        yield DocumentPiece(index, piece)
                index += 1
            if index < end:
                raise changed(file.path)

    def _cut(self, index: int, parts: Iterable[str], piece_characters: int) -> Iterable[Piece]:
        """The pieces of a document."""
        val_start = int(self.val_starts[index])
        if isinstance(parts, list) and len(parts[0]) <= piece_characters and val_start in (0, self.sizes[index]):
            return [Piece("train" if val_start else "val", parts[0], is_last=True)]  # most records: a fast path
        return cut_text(parts, val_start, piece_characters)


def changed(path: Path) -> UserError:
    """The error about a file that is not the same when it is read again."""
    return UserError(f"{path}: it has changed while it was read: prepare it again")


def find_documents(
    paths: Sequence[Path], val_paths: Sequence[Path] = (), reading: Reading | None = None
) -> DocumentList:
    """List the documents of files and folders, as `find_files` and `list_documents`."""
    return list_documents(find_files(paths, val_paths), reading or Reading())


def list_documents(files: list[TextFile], reading: Reading, near: NearDuplicates | None = None) -> DocumentList:
    """Read all files once, and list their documents. Documents without text are left out.

    Args:
        files: the files.
        reading: how to read their texts.
        near: finds documents that are nearly the same, if given.

    Raises:
        UserError: there is no text, or as `read_documents`.
    """
    check_encoding(reading.encoding)
    counts, numbers, sizes, hashes = array("q"), array("q"), array("q"), bytearray()
    broken = BrokenRecords(reading.skip_broken)
    total = sum(file.size for file in files)
    disable = total < PROGRESS_BAR_BYTES or None  # None: tqdm shows the bar only if stderr is a terminal
    with tqdm(total=total, desc="read", unit="B", unit_scale=True, disable=disable, leave=False) as progress:
        on_read = None if progress.disable else progress.update
        for file in files:
            before = len(numbers)
            for number, parts in read_documents(file, reading, broken, on_read):
                size, digest = 0, hashlib.blake2b()
                for text in parts:
                    content = text.encode()
                    size += len(content)
                    digest.update(content)
                    if near:
                        near.add(content)
                if near:
                    near.end_document()
                numbers.append(number)
                sizes.append(size)
                hashes += digest.digest()[:8]
            counts.append(len(numbers) - before)
    reached("documents listed")
    broken.warn()
    if not numbers:
        raise UserError(f"there is no text in {', '.join(str(file.path) for file in files[:MOST_NAMES])}")
    return DocumentList(
        files,
        reading,
        np.array(counts),
        np.array(numbers),
        np.array(sizes),
        np.frombuffer(hashes, dtype=">u8").astype(np.uint64),
        np.where(np.repeat([file.is_validation for file in files], counts), 0, np.array(sizes)),
        np.ones(len(sizes), dtype=bool),
        near.find() if near else None,
    )
