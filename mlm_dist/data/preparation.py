"""Prepares a corpus: reads documents in pieces, encodes them on all cores, and renames the folder once complete."""

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from mlm_dist.config import SAMPLE, DataConfig
from mlm_dist.data.corpus import FORMAT_VERSION, MANIFEST, SPLITS, TOKENIZER, Manifest, token_dtype
from mlm_dist.data.documents import IndexWriter
from mlm_dist.data.splitting import TokenCounts, hold_out
from mlm_dist.data.texts import PIECE_BYTES, Document, Piece, Split, find_documents, read_pieces
from mlm_dist.data.tokenizer import Tokenizer
from mlm_dist.errors import UserError
from mlm_dist.files import cache_folder, new_folder

IN_FLIGHT_PER_CORE = 4
BPE_TRAINING_BYTES = 256 << 20
BPE_TRAINING_PIECE_BYTES = 1 << 14  # small, because `tokenizers` collects 256 pieces before it counts words
SAMPLE_TEXT = Path(__file__).with_name("sample.txt")


def prepare_corpus(
    documents: list[Document], out: Path, tokenizer: str, vocab_size: int | None = None, encoding: str = "utf-8"
) -> Manifest:
    """Encode documents into a corpus in the folder `out`, which must not exist yet.

    It is built beside `out` under another name and renamed when it is complete. Memory holds a few pieces of
    `PIECE_BYTES` per core, whatever the sizes of the documents.

    Args:
        documents: the documents, in the order of the corpus.
        out: the corpus folder.
        tokenizer: the name of a tiktoken encoding, or `bpe` to train one on the documents.
        vocab_size: the vocabulary size of a `bpe` tokenizer.
        encoding: the character encoding of the documents.

    Raises:
        UserError: `out` exists or cannot be written, the tokenizer is not available, or a document cannot be decoded.
    """
    with new_folder(out) as folder:
        if tokenizer == "bpe":
            if vocab_size is None:
                raise UserError("a bpe tokenizer needs --vocab_size: 8000 suits a few megabytes of text")
            texts = bpe_training_texts(documents, encoding)
            encoder = Tokenizer.train_bpe(texts, vocab_size)
        else:
            encoder = Tokenizer.from_tiktoken(tokenizer)
        return encode_corpus(documents, folder, encoder, encoding)


def encode_corpus(documents: list[Document], folder: Path, tokenizer: Tokenizer, encoding: str = "utf-8") -> Manifest:
    """Encode documents with a tokenizer into an empty folder.

    Raises:
        UserError: a document cannot be decoded, or there are no training tokens.
    """
    tokenizer.save(folder / TOKENIZER)
    writer = CorpusWriter(folder, tokenizer)
    size = sum(document.size for document in documents)
    with tqdm(total=size, desc="encode", unit="B", unit_scale=True, disable=None, leave=False) as progress:
        for index, piece, ids in encode_in_order(read_all(documents, encoding), tokenizer):
            writer.add(index, documents[index].name, piece.split, ids)
            progress.update(len(piece.text.encode()))
    manifest = writer.finish()
    if manifest.tokens["train"] == 0:
        raise UserError("the documents contain no training text: all of it is in the validation split")
    manifest.write(folder)
    writer.counts.warn()
    return manifest


def find_or_prepare(config: DataConfig, vocab_size: int | None) -> Path:
    """Return the corpus folder of `data.path`. If the path is text, a corpus is first prepared in the user's cache.

    It is prepared again only if the files or the settings of the preparation change.

    Args:
        config: the path, and the settings of the preparation.
        vocab_size: the vocabulary size, which a `bpe` tokenizer requires.

    Raises:
        UserError: there is no such corpus or text, or the text cannot be prepared.
    """
    path = Path(config.path)
    if (path / MANIFEST).exists():
        return path
    if config.path == SAMPLE and not path.exists():
        path = SAMPLE_TEXT
    if not path.exists():
        raise UserError(
            f"data.path {path}: there is no such corpus or text; prepare one with "
            f"`python -m mlm_dist.prepare TEXTS --out {path}`"
        )
    if config.tokenizer == "bpe" and vocab_size is None:
        raise UserError("data.tokenizer bpe needs model.vocab_size: 8000 suits a few megabytes of text")
    documents = find_documents([path])
    vocabulary = [config.tokenizer, config.tokenizer == "bpe" and vocab_size]
    settings = [FORMAT_VERSION, *vocabulary, config.encoding, config.val_fraction]
    files = [[d.name, str(d.path.resolve()), d.size, d.path.stat().st_mtime_ns] for d in documents]
    digest = hashlib.sha256(json.dumps([settings, files]).encode()).hexdigest()[:16]
    folder = cache_folder() / digest
    if not (folder / MANIFEST).exists():
        try:
            documents = hold_out(documents, config.val_fraction)
            prepare_corpus(documents, folder, config.tokenizer, vocab_size, config.encoding)
        except UserError:
            if not (folder / MANIFEST).exists():  # otherwise, another run has just prepared the same corpus
                raise
    return folder


def read_all(documents: list[Document], encoding: str, piece_bytes: int = PIECE_BYTES) -> Iterator[tuple[int, Piece]]:
    """The pieces of all documents, each with the index of its document."""
    for index, document in enumerate(documents):
        for piece in read_pieces(document, encoding, piece_bytes):
            yield index, piece


def bpe_training_texts(documents: list[Document], encoding: str) -> Iterator[str]:
    """Texts to train a BPE on: evenly spaced pieces of the training split, about `BPE_TRAINING_BYTES` in total."""
    every = max(1, sum(document.size for document in documents) // BPE_TRAINING_BYTES)
    for count, (_, piece) in enumerate(read_all(documents, encoding, BPE_TRAINING_PIECE_BYTES)):
        if piece.split == "train" and count % every == 0:
            yield piece.text


def encode_in_order(
    pieces: Iterable[tuple[int, Piece]], tokenizer: Tokenizer
) -> Iterator[tuple[int, Piece, npt.NDArray[np.uint32]]]:
    """Encode pieces on all cores and yield them in order, with a bounded number in flight.

    Threads suffice, because tiktoken releases the interpreter lock while it encodes.
    """
    workers = usable_cores()

    def encode(indexed: tuple[int, Piece]) -> tuple[int, Piece, npt.NDArray[np.uint32]]:
        index, piece = indexed
        return index, piece, tokenizer.encode(piece.text)

    with ThreadPoolExecutor(workers) as pool:
        in_flight: deque[Future[tuple[int, Piece, npt.NDArray[np.uint32]]]] = deque()
        try:
            for piece in pieces:
                in_flight.append(pool.submit(encode, piece))
                if len(in_flight) > IN_FLIGHT_PER_CORE * workers:
                    yield in_flight.popleft().result()
            yield from (encoded.result() for encoded in in_flight)
        finally:
            pool.shutdown(cancel_futures=True)


def usable_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class CorpusWriter:
    """Appends token ids to `train.bin` and `val.bin`, with `<|endoftext|>` after the tokens of each document.

    The index of the documents is written beside them.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.dtype = token_dtype(tokenizer.vocab_size)
        self.files = {split: (folder / f"{split}.bin").open("wb") for split in SPLITS}
        self.digests = {split: hashlib.sha256() for split in SPLITS}
        self.counts = TokenCounts(tokenizer.vocab_size)
        self.tokens: dict[Split, int] = dict.fromkeys(SPLITS, 0)
        self.documents = IndexWriter(folder)
        self.index = -1  # of the document that is being written
        self.name = ""  # of this document
        self.starts = dict(self.tokens)  # of this document

    def add(self, index: int, name: str, split: Split, ids: npt.NDArray[np.uint32]) -> None:
        """Append the next token ids of a document. A different `index` starts the next document."""
        if index != self.index:
            self._end_document()
            self.index, self.name, self.starts = index, name, dict(self.tokens)
        self._write(split, ids)

    def finish(self) -> Manifest:
        """Close the files and return their manifest."""
        self._end_document()
        for file in [*self.files.values(), *self.documents.files.values()]:
            file.flush()
            os.fsync(file.fileno())
            file.close()
        return Manifest(
            tokenizer=self.tokenizer.name,
            vocab_size=self.tokenizer.vocab_size,
            mask_id=self.tokenizer.mask_id,
            end_id=self.tokenizer.end_id,
            tokens=self.tokens,
            tokenizer_sha256=self.tokenizer.fingerprint,
            sha256={name: digest.hexdigest() for name, digest in (self.digests | self.documents.digests).items()},
            documents=self.documents.count,
        )

    def _write(self, split: Split, ids: npt.NDArray[np.uint32]) -> None:
        content = ids.astype(self.dtype).tobytes()
        self.files[split].write(content)
        self.digests[split].update(content)
        self.counts.add(split, ids)
        self.tokens[split] += len(ids)

    def _end_document(self) -> None:
        if self.index < 0:
            return
        for split in SPLITS:
            if self.tokens[split] > self.starts[split]:
                self._write(split, np.array([self.tokenizer.end_id], dtype=np.uint32))
        self.documents.add(self.name, self.tokens["train"], self.tokens["val"])
