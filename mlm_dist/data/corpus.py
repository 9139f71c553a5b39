"""A prepared corpus: memory-mapped token files, and the manifest that describes them.

corpus.json   format version, tokenizer, vocabulary, token counts, SHA-256 of each file, documents
train.bin     token ids, little-endian, uint16 if the vocabulary allows, else uint32
val.bin       the validation split, in the same format
tokenizer/    ranks.tiktoken, encoding.json

The files must be on a local or shared disk: `load_batch` in data/masking.py reads rows at random positions.
"""

import json
import math
import os
import reprlib
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mlm_dist.data.texts import Split
from mlm_dist.data.tokenizer import Tokenizer
from mlm_dist.data.verification import verify_tokens
from mlm_dist.errors import UserError
from mlm_dist.files import LARGEST_JSON, open_regular, read_json
from mlm_dist.output import warn

FORMAT_VERSION = 2
EARLIER_VERSIONS = (1,)  # without the digest of the tokenizer
LARGEST_NUMBER = 1 << 48  # exclusive bound of ids and of token counts: more tokens than fit on a disk
MANIFEST = "corpus.json"
TOKENIZER = "tokenizer"
SHORT_END_TOKENS = 64
SPLITS: tuple[Split, ...] = ("train", "val")

Tokens = npt.NDArray[np.unsignedinteger[Any]]

Verify = Literal["once", "always", "never"]


@dataclass(frozen=True)
class Manifest:
    """The content of `corpus.json`.

    Attributes:
        tokens: the number of tokens in each split.
        sha256: the SHA-256 of each split's file.
        documents: for each document, its `name` and, for each split, the half-open range of its tokens.
        tokenizer_sha256: the fingerprint of the tokenizer; None in corpora of format version 1.
    """

    tokenizer: str
    vocab_size: int
    mask_id: int
    end_id: int
    tokens: dict[Split, int]
    sha256: dict[Split, str]
    documents: list[dict[str, Any]]
    tokenizer_sha256: str | None = None
    version: int = FORMAT_VERSION

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of token ids in the files."""
        return token_dtype(self.vocab_size)

    def write(self, folder: Path) -> None:
        """Write `corpus.json`. The bytes of file names that are not UTF-8 become JSON escapes."""
        content = json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"
        (folder / MANIFEST).write_text(content, encoding="utf-8", errors="backslashreplace")

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
            manifest = cls(**content)
            numbers = [manifest.vocab_size, manifest.mask_id, manifest.end_id, *(manifest.tokens[s] for s in SPLITS)]
            if not all(isinstance(number, int) and 0 <= number < LARGEST_NUMBER for number in numbers):
                raise ValueError("sizes and ids must be integers from 0 to 2**48 - 1")
            if not all(isinstance(manifest.sha256[split], str) for split in SPLITS):
                raise ValueError("a digest must be a string")
            if not all(is_document(document) for document in manifest.documents):
                raise ValueError("a document must have a name and a token range for each split")
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; was {folder} written by prepare?") from error
        except ValueError as error:
            raise UserError(f"{path}: not a corpus description ({error}); prepare the corpus again") from error
        except (KeyError, TypeError) as error:
            reason = "a value is missing, unknown or of the wrong type"
            raise UserError(f"{path}: not a corpus description ({reason}); prepare the corpus again") from error
        return manifest

    @property
    def median_end(self) -> float:
        """The median number of validation tokens of documents that are in both splits; infinity if there are none."""
        ranges = [[document[split] for split in SPLITS] for document in self.documents]
        ends = [val[1] - val[0] for train, val in ranges if train[1] > train[0] and val[1] > val[0]]
        return statistics.median(ends) if ends else math.inf


def is_document(value: Any) -> bool:
    """Whether an entry of `corpus.json` describes a document."""
    numbers = [number for split in SPLITS for number in (*value[split], len(value[split]))]
    return isinstance(value["name"], str) and all(isinstance(n, int) for n in numbers) and numbers[2::3] == [2, 2]


@dataclass(frozen=True)
class Corpus:
    """An open corpus.

    Attributes:
        train, val: token ids, one memory map per split.
    """

    folder: Path
    manifest: Manifest
    tokenizer: Tokenizer
    train: Tokens
    val: Tokens

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
        if manifest.version in EARLIER_VERSIONS and manifest.median_end < SHORT_END_TOKENS:
            warn(
                f"{folder}: its validation text is the ends of documents, half of them shorter than "
                f"{manifest.median_end:g} tokens: the loss on such short ends is higher than on whole documents; "
                f"prepare the corpus again to validate on whole documents"
            )
        train, val = (map_tokens(folder, split, manifest) for split in SPLITS)
        if verify != "never":
            for split, tokens in zip(SPLITS, (train, val), strict=True):
                digest, always = manifest.sha256[split], verify == "always"
                verify_tokens(folder / f"{split}.bin", tokens, digest, manifest.vocab_size, always)
        return cls(folder, manifest, tokenizer, train, val)

    def rows(self, split: Split, block_size: int) -> Tokens:
        """The tokens of a split as rows, (rows, block_size). Tokens at the end that do not fill a row are dropped."""
        tokens = self.train if split == "train" else self.val
        count = len(tokens) // block_size
        return tokens[: count * block_size].reshape(count, block_size)


def map_tokens(folder: Path, split: Split, manifest: Manifest) -> Tokens:
    """Memory-map the file of a split.

    Raises:
        UserError: it cannot be read, or its size is not the one in `corpus.json`.
    """
    path = folder / f"{split}.bin"
    expected = manifest.tokens[split] * manifest.dtype.itemsize
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            tokens = np.memmap(file, dtype=manifest.dtype, mode="r") if size == expected > 0 else None
        if size != expected:
            raise UserError(
                f"{path}: {size} bytes, but {MANIFEST} says {expected}: the file was truncated or changed; delete "
                f"{folder} and prepare it again"
            )
        return np.empty(0, dtype=manifest.dtype) if tokens is None else tokens  # an empty file cannot be mapped
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; prepare the corpus again") from error


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest little-endian type that holds every id of a vocabulary."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
