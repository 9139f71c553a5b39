"""Verifies token files: each is hashed once per machine, and afterwards recognized by size, times and inode."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from mlm_dist.errors import UserError
from mlm_dist.files import cache_folder, read_json, replacing

CHUNK_TOKENS = 1 << 22
PROGRESS_BAR_BYTES = 1 << 31  # smaller files have no progress bar


def verify_tokens(
    path: Path, tokens: npt.NDArray[np.unsignedinteger[Any]], sha256: str, vocab_size: int, always: bool = False
) -> None:
    """Verify the digest and the ids of a token file.

    Hashing takes less than a second per gigabyte. If this machine has verified the file before, and its size, inode and
    times have not changed since, it is not hashed again.

    Args:
        path: the token file.
        tokens: its content, (N,).
        sha256: the expected digest.
        vocab_size: every id must be below it.
        always: hash the file even if this machine has verified it before.

    Raises:
        UserError: the file does not have this digest, or contains an id beyond the vocabulary.
    """
    record = verification_record(path)
    status = path.stat()
    verified = {
        "path": str(path.resolve()),
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "ctime_ns": status.st_ctime_ns,  # a program that resets the mtime cannot set the ctime
        "inode": status.st_ino,
        "sha256": sha256,
        "vocab_size": vocab_size,
    }
    if not always and read_verification(record) == verified:
        return
    digest, largest = scan(tokens, path.name)
    if digest != sha256:
        raise UserError(
            f"{path}: its SHA-256 is not the one in corpus.json: the file was changed after it was prepared; restore a "
            f"copy, or delete {path.parent} and prepare it again"
        )
    if largest >= vocab_size:
        raise UserError(
            f"{path}: it contains the token id {largest}, but the largest id of the vocabulary is {vocab_size - 1}: "
            f"prepare the corpus again"
        )
    write_verification(record, verified)


def scan(tokens: npt.NDArray[np.unsignedinteger[Any]], name: str) -> tuple[str, int]:
    """Compute the SHA-256 of tokens (N,) and the largest id in one pass. Without tokens, the largest id is -1."""
    digest, largest = hashlib.sha256(), -1
    disable = tokens.nbytes < PROGRESS_BAR_BYTES or None  # None: tqdm shows the bar only if stderr is a terminal
    with tqdm(
        total=tokens.nbytes, desc=f"verify {name}", unit="B", unit_scale=True, disable=disable, leave=False
    ) as bar:
        for start in range(0, len(tokens), CHUNK_TOKENS):
            chunk = tokens[start : start + CHUNK_TOKENS]
            digest.update(chunk.data)
            largest = max(largest, int(chunk.max()))
            bar.update(chunk.nbytes)
    return digest.hexdigest(), largest


def verification_record(path: Path) -> Path | None:
    """The file that records a verification on this machine; None if the user has no cache folder."""
    try:
        folder = cache_folder() / "verified"
    except UserError:
        return None
    return folder / f"{hashlib.sha256(str(path.resolve()).encode(errors='surrogateescape')).hexdigest()[:32]}.json"


def read_verification(record: Path | None) -> Any:
    """The recorded verification; None if there is none or it cannot be read."""
    with suppress(OSError, ValueError):
        return read_json(record) if record else None
    return None


def write_verification(record: Path | None, verified: dict[str, Any]) -> None:
    """Record a verification. If this fails, the file is hashed again the next time."""
    with suppress(OSError):
        if record:
            record.parent.mkdir(parents=True, exist_ok=True)
            with replacing(record, shared=True) as file:
                file.write(json.dumps(verified).encode())
