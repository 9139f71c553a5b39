"""Prepares a corpus: reads documents in pieces, encodes them on all cores, and renames the folder once complete."""

import dataclasses
import glob
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mlm_dist.config import SAMPLE, DataConfig
from mlm_dist.data.bpe_extension import extend_bpe
from mlm_dist.data.corpus import FORMAT_VERSION, MANIFEST, TOKENIZER, Manifest, token_dtype
from mlm_dist.data.documents import write_index
from mlm_dist.data.encoding import EncodedBatch, encode_in_order
from mlm_dist.data.shards import SplitWriter
from mlm_dist.data.splitting import TokenCounts, hold_out
from mlm_dist.data.text_report import TextCounts
from mlm_dist.data.tokenizer import Tokenizer
from mlm_dist.data.tokenizer_json import TOKENIZER_JSON, read_exported_tokenizer
from mlm_dist.errors import UserError
from mlm_dist.fault_points import reached
from mlm_dist.files import cache_folder, format_size, new_folder
from mlm_dist.output import warn
from mlm_dist.texts.document_list import DocumentList, list_documents
from mlm_dist.texts.finding import SPLITS, find_files
from mlm_dist.texts.reading import Reading

BPE_TRAINING_BYTES = 256 << 20
BPE_TRAINING_PIECE_CHARACTERS = 1 << 14  # small, because `tokenizers` collects 256 pieces before it counts words
COMPARED_BYTES = 8 << 20
SAMPLE_TEXT = Path(__file__).with_name("sample.txt")


def prepare_corpus(
    documents: DocumentList,
    out: Path,
    tokenizer: str,
    vocab_size: int | None = None,
    add_tokens: int | None = None,
    shard_tokens: int | None = None,
) -> Manifest:
    """Encode documents into a corpus in the folder `out`, which must not exist yet.

    It is built beside `out` under another name and renamed when it is complete. Memory holds a few batches per core
    and some bytes per document, whatever the sizes of the documents.

    Args:
        documents: the documents, in the order of the corpus.
        out: the corpus folder.
        tokenizer: the name of a tiktoken encoding, the folder of a corpus, run or exported model whose tokenizer is
            used, or `bpe` to train one on the documents.
        vocab_size: the vocabulary size of a `bpe` tokenizer.
        add_tokens: the number of tokens to extend the tokenizer of a folder by, learned on the documents.
        shard_tokens: the largest number of tokens in a file; None for one file per split.

    Raises:
        UserError: `out` exists or cannot be written, the tokenizer is not available, or a document cannot be read.
    """
    with new_folder(out) as folder:
        encoder = choose_tokenizer(documents, tokenizer, vocab_size, add_tokens)
        return encode_corpus(documents, folder, encoder, shard_tokens)


def choose_tokenizer(
    documents: DocumentList, name: str, vocab_size: int | None, add_tokens: int | None = None
) -> Tokenizer:
    """Load or train the tokenizer of a corpus, as in `prepare_corpus`."""
    saved = None if name == "bpe" else saved_tokenizer(name)
    if add_tokens is not None:
        if saved is None:
            raise UserError(f"--extend {name}: it is not the folder of a corpus, run or exported model")
        return extend_tokenizer(saved, documents, add_tokens)
    if name == "bpe":
        if vocab_size is None:
            raise UserError("a bpe tokenizer needs --vocab_size: 8000 suits a few megabytes of text")
        return Tokenizer.train_bpe(training_texts(documents, BPE_TRAINING_BYTES), vocab_size)
    return saved or Tokenizer.from_tiktoken(name)


def extend_tokenizer(base: Tokenizer, documents: DocumentList, add_tokens: int) -> Tokenizer:
    """Extend a tokenizer by tokens learned on documents, and report how much fewer tokens the text then is."""
    extended = extend_bpe(base, training_texts(documents, BPE_TRAINING_BYTES), add_tokens)
    size, tokens_before, tokens = 0, 0, 0
    for text in training_texts(documents, COMPARED_BYTES):
        size += len(text.encode())
        tokens_before += len(base.encode(text))
        tokens += len(extended.encode(text))
    learned = extended.vocab_size - base.vocab_size
    why_fewer = f" instead of {add_tokens:,}, because every word of the texts is already a token"
    if tokens:  # otherwise, there is no training text, which is an error later
        warn(
            f"learned {learned:,} tokens{why_fewer if learned < add_tokens else ''}: {size / tokens:.2f} bytes per "
            f"token, {size / tokens_before:.2f} before (in {format_size(size)} of the training text)"
        )
    return extended


def encode_corpus(
    documents: DocumentList, folder: Path, tokenizer: Tokenizer, shard_tokens: int | None = None
) -> Manifest:
    """Encode documents with a tokenizer into an empty folder; `shard_tokens` as in `prepare_corpus`.

    Raises:
        UserError: a document cannot be read, or there are no training tokens.
    """
    tokenizer.save(folder / TOKENIZER)
    writer, counts = CorpusWriter(folder, tokenizer, len(documents.sizes), shard_tokens), TextCounts()
    with tqdm(total=documents.size, desc="encode", unit="B", unit_scale=True, disable=None, leave=False) as progress:
        for encoded in encode_in_order(documents.pieces(), tokenizer):
            reached("batch encoded")
            writer.add(encoded)
            counts.add(encoded.batch)
            if not progress.disable:
                progress.update(sum(len(text.encode()) for text in encoded.batch.texts))
    manifest = writer.finish(documents.names())
    manifest = dataclasses.replace(
        manifest, texts=dataclasses.asdict(counts.report(documents, sum(manifest.tokens.values())))
    )
    if manifest.tokens["train"] == 0:
        raise UserError("the documents contain no training text: all of it is in the validation split")
    manifest.write(folder)
    reached("corpus written")
    writer.counts.warn()
    return manifest


def find_or_prepare_all(config: DataConfig, vocab_size: int | None) -> list[Path]:
    """Return the corpus folder of each path of `data.path`, as `find_or_prepare`."""
    return [find_or_prepare(dataclasses.replace(config, path=part["path"]), vocab_size) for part in config.parts]


def find_or_prepare(config: DataConfig, vocab_size: int | None) -> Path:
    """Return the corpus folder of `data.path`. If the path is text, a corpus is first prepared in the user's cache.

    It is prepared again only if the files or the settings of the preparation change.

    Args:
        config: the path, and the settings of the preparation.
        vocab_size: the vocabulary size, which a `bpe` tokenizer requires.

    Raises:
        UserError: there is no such corpus or text, or the text cannot be prepared.
    """
    path = Path(config.paths)
    if (path / MANIFEST).exists():
        return path
    if config.path == SAMPLE and not path.exists():
        path = SAMPLE_TEXT
    if not path.exists() and not glob.has_magic(str(path)):
        raise UserError(
            f"data.path {path}: there is no such corpus or text; prepare one with "
            f"`python -m mlm_dist.prepare TEXTS --out {path}`"
        )
    if config.tokenizer == "bpe" and vocab_size is None:
        raise UserError("data.tokenizer bpe needs model.vocab_size: 8000 suits a few megabytes of text")
    reading = Reading.from_config(config)
    files = find_files([path])
    saved = saved_tokenizer(config.tokenizer)
    vocabulary = [saved.fingerprint if saved else config.tokenizer, config.tokenizer == "bpe" and vocab_size]
    settings = [FORMAT_VERSION, *vocabulary, config.val_fraction, dataclasses.astuple(reading)]
    contents = [[file.name, str(file.path.absolute()), file.size, file.modified] for file in files]
    digest = hashlib.sha256(json.dumps([settings, contents]).encode()).hexdigest()[:16]
    folder = cache_folder() / digest
    if not (folder / MANIFEST).exists():
        try:
            documents = hold_out(list_documents(files, reading), config.val_fraction)
            with new_folder(folder) as partial:
                encode_corpus(documents, partial, saved or choose_tokenizer(documents, config.tokenizer, vocab_size))
        except UserError:
            if not (folder / MANIFEST).exists():  # otherwise, another run has just prepared the same corpus
                raise
    return folder


def saved_tokenizer(name: str) -> Tokenizer | None:
    """The tokenizer in the folder of a corpus, run or exported model; None if this is not the name of such a folder.

    Raises:
        UserError: a file of the tokenizer is missing or damaged.
    """
    if (Path(name) / TOKENIZER).is_dir():
        return Tokenizer.load(Path(name) / TOKENIZER)
    return read_exported_tokenizer(Path(name)) if (Path(name) / TOKENIZER_JSON).exists() else None


def training_texts(documents: DocumentList, size: int) -> Iterator[str]:
    """Texts to train a BPE on: evenly spaced pieces of the training split, about `size` bytes in total."""
    every = max(1, documents.size // size)
    for count, (_, piece) in enumerate(documents.pieces(BPE_TRAINING_PIECE_CHARACTERS)):
        if piece.split == "train" and count % every == 0:
            yield piece.text


class CorpusWriter:
    """Appends token ids to the files of the splits, and writes the index of the documents beside them."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, documents: int, shard_tokens: int | None = None) -> None:
        self.folder = folder
        self.tokenizer = tokenizer
        self.shard_tokens = shard_tokens
        dtype = token_dtype(tokenizer.vocab_size)
        self.splits = {split: SplitWriter(folder, split, dtype, shard_tokens) for split in SPLITS}
        self.counts = TokenCounts(tokenizer.vocab_size)
        self.lengths = {split: np.zeros(documents, dtype=np.int64) for split in SPLITS}

    def add(self, encoded: EncodedBatch) -> None:
        """Append the next token ids of a split."""
        split = encoded.batch.split
        self.splits[split].write(encoded.ids)
        self.counts.add(split, encoded.ids)
        self.lengths[split][encoded.batch.documents] += encoded.lengths

    def finish(self, names: Iterable[str]) -> Manifest:
        """Write the index of the documents that have tokens, close the files and return the manifest.

        Args:
            names: the names of these documents.
        """
        digests: dict[str, str] = {}
        for writer in self.splits.values():
            writer.close()
            digests |= {name: digest.hexdigest() for name, digest in writer.digests.items()}
        lengths = np.column_stack([self.lengths[split] for split in SPLITS])
        lengths = lengths[lengths.any(axis=1)]
        return Manifest(
            tokenizer=self.tokenizer.name,
            vocab_size=self.tokenizer.vocab_size,
            mask_id=self.tokenizer.mask_id,
            end_id=self.tokenizer.end_id,
            tokens={split: int(self.lengths[split].sum()) for split in SPLITS},
            tokenizer_sha256=self.tokenizer.fingerprint,
            sha256=digests | write_index(self.folder, names, lengths),
            documents=len(lengths),
            shard_tokens=self.shard_tokens,
        )
