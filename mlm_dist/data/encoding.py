"""Encodes documents on all cores, in batches: a task for each short document would cost more than its encoding."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mlm_dist.data.tokenizer import Tokenizer
from mlm_dist.texts.document_list import DocumentPiece
from mlm_dist.texts.finding import SPLITS, Split
from mlm_dist.texts.pieces import PIECE_CHARACTERS

IN_FLIGHT_PER_CORE = 4


class Batch(NamedTuple):
    """Consecutive pieces of a split, each of another document, that are encoded together.

    Attributes:
        split: the split.
        documents: the indices of the documents.
        texts: the pieces.
        is_last: whether the last piece is the last one of its document in this split. The others are.
    """

    split: Split
    documents: list[int]
    texts: list[str]
    is_last: bool


class EncodedBatch(NamedTuple):
    """A batch and its token ids.

    Attributes:
        batch: the batch.
        ids: (tokens,) the ids, with `<|endoftext|>` after each document.
        lengths: (documents,) the number of ids of each document.
    """

    batch: Batch
    ids: npt.NDArray[np.uint32]
    lengths: npt.NDArray[np.int64]


def batches(pieces: Iterable[DocumentPiece], characters: int = PIECE_CHARACTERS) -> Iterator[Batch]:
    """Collect pieces into batches of about this many characters. The order within each split is kept."""
    waiting = {split: Batch(split, [], [], is_last=True) for split in SPLITS}
    sizes = dict.fromkeys(SPLITS, 0)
    for document, piece in pieces:
        batch = waiting[piece.split]
        batch.documents.append(document)
        batch.texts.append(piece.text)
        sizes[piece.split] += len(piece.text)
        if sizes[piece.split] >= characters or not piece.is_last:
            yield batch._replace(is_last=piece.is_last)
            waiting[piece.split], sizes[piece.split] = Batch(piece.split, [], [], is_last=True), 0
    yield from (batch for batch in waiting.values() if batch.texts)


def encode_in_order(pieces: Iterable[DocumentPiece], tokenizer: Tokenizer) -> Iterator[EncodedBatch]:
    """Encode pieces on all cores and yield them in batches, in order, with a bounded number in flight.

    Threads suffice, because tiktoken releases the interpreter lock while it encodes.
    """
    workers = usable_cores()

    def encode(batch: Batch) -> EncodedBatch:
        ids = tokenizer.encode_documents(batch.texts, batch.is_last)
        ends = np.flatnonzero(ids == tokenizer.end_id) + 1
        lengths = np.diff(ends if batch.is_last else [*ends, len(ids)], prepend=0)
        return EncodedBatch(batch, ids, lengths)

    with ThreadPoolExecutor(workers) as pool:
        in_flight: deque[Future[EncodedBatch]] = deque()
        try:
            for batch in batches(pieces):
                in_flight.append(pool.submit(encode, batch))
                if len(in_flight) > IN_FLIGHT_PER_CORE * workers:
                    yield in_flight.popleft().result()
            yield from (encoded.result() for encoded in in_flight)
        finally:
            pool.shutdown(cancel_futures=True)


def usable_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
