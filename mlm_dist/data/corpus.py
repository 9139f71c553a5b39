"""A prepared corpus: memory-mapped token files, and the manifest that describes them.

corpus.json               format version, tokenizer, vocabulary, counts of tokens and documents, SHA-256 of each file
train.bin                 token ids, little-endian, uint16 if the vocabulary allows, else uint32; or, in shards,
                          train-00000.bin, train-00001.bin, ... (data/shards.py)
val.bin                   the validation split, in the same format
documents.bin, .names     the index of the documents (data/documents.py)
tokenizer/                ranks.tiktoken, encoding.json

The files must be on a local or shared disk: data/rows.py reads rows at random positions.
"""

import json
import math
import reprlib
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from mlm_dist.data.documents import ENDS, NAMES, DocumentIndex
from mlm_dist.data.shards import Shards, StoredRows, StoredTokens, file_name
from mlm_dist.data.tokenizer import Tokenizer
from mlm_dist.data.verification import map_file, verify_file
from mlm_dist.errors import UserError
from mlm_dist.files import LARGEST_JSON, read_json
from mlm_dist.output import warn
from mlm_dist.texts.finding import SPLITS, Split

FORMAT_VERSION = 3
EARLIER_VERSIONS = (1, 2)  # with the documents in corpus.json; 1 without the digest of the tokenizer
LARGEST_NUMBER = 1 << 48  # exclusive bound of ids and of token counts: more tokens than fit on a disk
MANIFEST = "corpus.json"
TOKENIZER = "tokenizer"
SHORT_END_TOKENS = 64

Verify = Literal["once", "always", "never"]


class TokenFile(NamedTuple):
    """A file of token ids: its name, the number of its tokens, and its SHA-256."""

    name: str
    tokens: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The content of `corpus.json`.

    Attributes:
        tokens: the number of tokens in each split.
        sha256: the SHA-256 of the tokens of each split, of each of its shards, and of the files of the document index.
        documents: the number of documents.
        tokenizer_sha256: the fingerprint of the tokenizer; None in corpora of format version 1.
        texts: what the texts are like, as in `TextReport` (data/text_report.py); None in earlier corpora.
        shard_tokens: the number of tokens in every shard of a split but its last one; None if a split is one file.
    """

    tokenizer: str
    vocab_size: int
    mask_id: int
    end_id: int
    tokens: dict[Split, int]
    sha256: dict[str, str]
    documents: int
    tokenizer_sha256: str | None = None
    texts: dict[str, Any] | None = None
    version: int = FORMAT_VERSION
    shard_tokens: int | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of token ids in the files."""
        return token_dtype(self.vocab_size)

    def files(self, split: Split) -> Iterator[TokenFile]:
        """The files of a split, in order."""
        count, size = self.tokens[split], self.shard_tokens
        if size is None:
            yield TokenFile(file_name(split), count, self.sha256[split])
            return
        for shard, start in enumerate(range(0, count or 1, size)):
            name = file_name(split, shard)
            yield TokenFile(name, min(size, count - start), self.sha256[name])

    def write(self, folder: Path) -> None:
        """Write `corpus.json`."""
        values = {key: value for key, value in asdict(self).items() if key != "shard_tokens" or value}
        content = json.dumps(values, indent=1, ensure_ascii=False) + "\n"
        (folder / MANIFEST).write_text(content, encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read `corpus.json`.

        Raises:
            UserError: it is missing or damaged, or has an unknown format version.
        """
        path = folder / MANIFEST
        try:
            content = read_json(path, LARGEST_JSON)
            if content["version"] not in (*EARLIER_VERSIONS, FORMAT_VERSION):
                version = reprlib.repr(content["version"])
                raise UserError(
                    f"{path}: format version {version} instead of {FORMAT_VERSION}: prepare the corpus again"
                )
            files: tuple[str, ...] = (*SPLITS, ENDS, NAMES)
            if content["version"] in EARLIER_VERSIONS:
                if not all(map(is_document, content["documents"])):
                    raise ValueError("a document must have a name and a token range for each split")
                content["documents"], files = len(content["documents"]), SPLITS
            manifest = cls(**content)
            numbers = [manifest.vocab_size, manifest.mask_id, manifest.end_id, manifest.documents]
            numbers += [manifest.tokens[split] for split in SPLITS]
            numbers += [] if manifest.shard_tokens is None else [manifest.shard_tokens - 1]  # at least one token
            if not all(isinstance(number, int) and 0 <= number < LARGEST_NUMBER for number in numbers):
                raise ValueError("counts and ids must be integers from 0 to 2**48 - 1")
            digests = [manifest.sha256[file] for file in files]
            digests += [file.sha256 for split in SPLITS for file in manifest.files(split)]
            if not all(isinstance(digest, str) for digest in digests):
                raise ValueError("a digest must be a string")
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; was {folder} written by prepare?") from error
        except ValueError as error:
            raise UserError(f"{path}: not a corpus description ({error}); prepare the corpus again") from error
        except (KeyError, TypeError) as error:
            reason = "a value is missing, unknown or of the wrong type"
            raise UserError(f"{path}: not a corpus description ({reason}); prepare the corpus again") from error
        return manifest


def is_document(value: Any) -> bool:
    """Whether an entry of a `corpus.json` of version 1 or 2 describes a document."""
    numbers = [number for split in SPLITS for number in (*value[split], len(value[split]))]
    return isinstance(value["name"], str) and all(isinstance(n, int) for n in numbers) and numbers[2::3] == [2, 2]


@dataclass(frozen=True)
class Corpus:
    """An open corpus.

    Attributes:
        train, val: token ids: a memory map, or one for each shard.
    """

    folder: Path
    manifest: Manifest
    tokenizer: Tokenizer
    train: StoredTokens
    val: StoredTokens

    @classmethod
    def open(cls, folder: Path, verify: Verify = "once") -> "Corpus":
        """Open a corpus and check the size and digest of each file against `corpus.json`.

        Args:
            folder: the corpus folder.
            verify: when to verify the digests. `once` is once per machine, until a file changes. `never` is for a
                process on a machine where another process verifies them.

        Raises:
            UserError: a file is missing, damaged, or was changed after it was prepared.
        """
        manifest = Manifest.read(folder)
        tokenizer = Tokenizer.load(folder / TOKENIZER, advice="prepare the corpus again")
        if tokenizer.vocab_size != manifest.vocab_size or tokenizer.mask_id != manifest.mask_id:
            raise UserError(f"{folder}: its tokenizer is not the one in {MANIFEST}; prepare the corpus again")
        if manifest.tokenizer_sha256 not in (None, tokenizer.fingerprint):
            raise UserError(
                f"{folder / TOKENIZER}: it was changed after the corpus was prepared: restore a copy, or prepare the "
                f"corpus again"
            )
        corpus = cls(folder, manifest, tokenizer, *(map_tokens(folder, split, manifest) for split in SPLITS))
        if manifest.version == FORMAT_VERSION:
            DocumentIndex.open(folder, manifest.documents, manifest.tokens)  # checks the sizes
        elif (median := corpus.median_end()) < SHORT_END_TOKENS:
            warn(
                f"{folder}: its validation text is the ends of documents, half of them shorter than {median:g} tokens: "
                f"the loss on such short ends is higher than on whole documents; prepare the corpus again to validate "
                f"on whole documents"
            )
        if verify != "never":
            for split, tokens in zip(SPLITS, (corpus.train, corpus.val), strict=True):
                parts = tokens.parts if isinstance(tokens, Shards) else [tokens]
                for file, part in zip(manifest.files(split), parts, strict=True):
                    verify_file(folder / file.name, part, file.sha256, manifest.vocab_size, verify == "always")
        return corpus

    def documents(self) -> DocumentIndex:
        """The index of the documents, verified once per machine.

        Raises:
            UserError: its files are damaged, or were changed after they were prepared.
        """
        if self.manifest.version in EARLIER_VERSIONS:
            return DocumentIndex.from_list(read_json(self.folder / MANIFEST, LARGEST_JSON)["documents"])
        index = DocumentIndex.open(self.folder, self.manifest.documents, self.manifest.tokens)
        index.verify(self.folder, self.manifest.sha256)
        return index

    def median_end(self) -> float:
        """The median number of validation tokens of documents that are in both splits; infinity if there are none."""
        ends = [val for counts in self.documents().counts() for train, val in counts.tolist() if train and val]
        return statistics.median(ends) if ends else math.inf

    def rows(self, split: Split, block_size: int) -> StoredRows:
        """The tokens of a split as rows, (rows, block_size). Tokens at the end that do not fill a row are dropped."""
        tokens = self.train if split == "train" else self.val
        count = len(tokens) // block_size
        return tokens[: count * block_size].reshape(count, block_size)


def map_tokens(folder: Path, split: Split, manifest: Manifest) -> StoredTokens:
    """Memory-map the files of a split.

    Raises:
        UserError: one cannot be read, its size is not the one in `corpus.json`, or there are more of them.
    """
    files = [*manifest.files(split)]
    parts = [map_file(folder / file.name, manifest.dtype, file.tokens) for file in files]
    if manifest.shard_tokens is None:
        return parts[0]
    names = {file.name for file in files}
    for path in sorted(folder.glob(f"{split}-*.bin")):
        if path.name not in names:
            raise UserError(f"{path}: {MANIFEST} has {len(files)} shards, and not this one: delete it")
    return Shards(parts)


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest little-endian type that holds every id of a vocabulary."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
