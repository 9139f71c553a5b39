"""The index of a corpus's documents. Reports read it; training does not.

documents.bin    three little-endian int64 a document: the ends of its tokens in train.bin and in val.bin, and of its
                 name in documents.names. A document starts where the one before it ends.
documents.names  their names, one a line, in UTF-8. The suffix is not that of a text, because a corpus without its
                 corpus.json is taken for a folder of texts.
"""

import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mlm_dist.data.verification import map_file, verify_file
from mlm_dist.errors import UserError
from mlm_dist.texts.finding import Split

ENDS = "documents.bin"
NAMES = "documents.names"
DTYPE = np.dtype("<i8")
COLUMNS = 3
CHUNK_DOCUMENTS = 1 << 16


class IndexedDocument(NamedTuple):
    """A document of a corpus: its name, and its tokens in each split."""

    name: str
    train: slice
    val: slice

    def count(self, split: Split) -> int:
        """The number of its tokens in a split."""
        tokens: slice = getattr(self, split)
        return int(tokens.stop - tokens.start)


class DocumentIndex:
    """The documents of a corpus, in its order.

    Args:
        ends: (documents, 3) int64, as in `documents.bin`.
        names: (bytes,) uint8, as in `documents.names`.
    """

    def __init__(self, ends: npt.NDArray[np.int64], names: npt.NDArray[np.uint8]) -> None:
        self.ends = ends
        self.names = names

    @classmethod
    def open(cls, folder: Path, count: int, tokens: Mapping[Split, int]) -> "DocumentIndex":
        """Memory-map the index of a corpus and check its sizes.

        Args:
            folder: the corpus folder.
            count: the number of documents.
            tokens: the number of tokens in each split.

        Raises:
            UserError: a file cannot be read, or its size is wrong.
        """
        ends = map_file(folder / ENDS, DTYPE, COLUMNS * count).reshape(count, COLUMNS)
        *last, name_bytes = ends[-1].tolist() if count else [0] * COLUMNS
        if last != [tokens["train"], tokens["val"]] or name_bytes < 0:
            raise UserError(f"{folder / ENDS}: it does not end where the tokens end: prepare the corpus again")
        return cls(ends, map_file(folder / NAMES, np.dtype("u1"), name_bytes, described_by=ENDS))

    @classmethod
    def from_list(cls, documents: list[dict[str, Any]]) -> "DocumentIndex":
        """The index in a `corpus.json` of version 1 or 2: the name and the token ranges of each document."""
        names = [encode_name(document["name"]) for document in documents]
        ends = [[document[split][1] for split in ("train", "val")] for document in documents]
        name_ends = np.cumsum([len(name) for name in names], dtype=DTYPE)
        table = np.column_stack([np.array(ends, dtype=DTYPE).reshape(-1, 2), name_ends])
        return cls(table, np.frombuffer(b"".join(names), dtype=np.uint8))

    def verify(self, folder: Path, sha256: Mapping[str, str]) -> None:
        """Verify the digests of the files, once per machine.

        Raises:
            UserError: a file was changed after it was prepared.
        """
        verify_file(folder / ENDS, self.ends.reshape(-1), sha256[ENDS])
        verify_file(folder / NAMES, self.names, sha256[NAMES])

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> IndexedDocument:
        if not 0 <= index < len(self):
            raise IndexError(index)
        starts = self.ends[index - 1].tolist() if index else [0] * COLUMNS
        train, val, name = map(slice, starts, self.ends[index].tolist())
        return IndexedDocument(decode_name(self.names[name].tobytes()), train, val)

    def __iter__(self) -> Iterator[IndexedDocument]:
        return map(self.__getitem__, range(len(self)))

    def counts(self) -> Iterator[npt.NDArray[np.int64]]:
        """The tokens of each document in the two splits, (N, 2), some documents at a time."""
        last = np.zeros((1, 2), dtype=DTYPE)
        for start in range(0, len(self), CHUNK_DOCUMENTS):
            ends = self.ends[start : start + CHUNK_DOCUMENTS, :2]
            yield np.diff(ends, axis=0, prepend=last)
            last = ends[-1:]


def write_index(folder: Path, names: Iterable[str], lengths: npt.NDArray[np.int64]) -> dict[str, str]:
    """Write the index of a corpus and return the SHA-256 of its files.

    Args:
        folder: the corpus folder.
        names: the names of the documents.
        lengths: (documents, 2) the tokens of each document in the two splits.
    """
    digests = {name: hashlib.sha256() for name in (ENDS, NAMES)}
    last = np.zeros((1, COLUMNS), dtype=DTYPE)
    with ExitStack() as stack:
        files = {name: stack.enter_context((folder / name).open("wb")) for name in digests}
        lines = map(encode_name, names)
        for start in range(0, len(lengths), CHUNK_DOCUMENTS):
            chunk = lengths[start : start + CHUNK_DOCUMENTS]
            some = [*itertools.islice(lines, len(chunk))]
            ends = np.column_stack([chunk, np.array([*map(len, some)], dtype=DTYPE)]).cumsum(axis=0) + last
            last = ends[-1:]
            for name, content in ((ENDS, ends.astype(DTYPE).tobytes()), (NAMES, b"".join(some))):
                files[name].write(content)
                digests[name].update(content)
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
    return {name: digest.hexdigest() for name, digest in digests.items()}


def encode_name(name: str) -> bytes:
    """A name as a line of `documents.names`. The bytes of a file name that is not UTF-8 are kept."""
    return name.encode(errors="surrogateescape") + b"\n"


def decode_name(line: bytes) -> str:
    """The name in a line of `documents.names`."""
    return line.removesuffix(b"\n").decode(errors="surrogateescape")
