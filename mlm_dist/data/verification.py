"""Maps the files of a corpus and verifies them.

Each is hashed once per machine, and afterwards recognized by size, times and inode.

Each shard is compared with the digest under its own name, so shards that were exchanged are noticed. The digest of the
whole split, which a run compares with that of its corpus (run/record.py), is not computed again: it would take a second
pass. So if someone exchanges two shards together with their digests in corpus.json, a resumed run reads other rows.
Digests find accidents. Someone who forges corpus.json could change that digest too.
"""

import errno
import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from mlm_dist.errors import UserError
from mlm_dist.files import cache_folder, open_regular, read_json, replacing

CHUNK_BYTES = 1 << 23
PROGRESS_BAR_BYTES = 1 << 31  # smaller files have no progress bar


Array = npt.NDArray[Any]


def map_file(path: Path, dtype: np.dtype[Any], count: int, described_by: str = "corpus.json") -> Array:
    """Memory-map a file of `count` numbers: (count,).

    Args:
        path: the file.
        dtype: of the numbers.
        count: their number.
        described_by: the file that says how many there are, for the message.

    Raises:
        UserError: it cannot be read, or has another size.
    """
    expected = count * dtype.itemsize
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            content = np.memmap(file, dtype=dtype, mode="r") if size == expected > 0 else None
    except OSError as error:
        too_many = error.errno == errno.EMFILE  # each mapped file stays open
        advice = "raise `ulimit -n`, or prepare larger shards" if too_many else "prepare the corpus again"
        raise UserError(f"{path}: {error.strerror}; {advice}") from error
    if size != expected:
        raise UserError(
            f"{path}: {size} bytes, but {described_by} says {expected}: the file was truncated or changed; delete "
            f"{path.parent} and prepare it again"
        )
    return np.empty(0, dtype=dtype) if content is None else content  # an empty file cannot be mapped


def verify_file(path: Path, content: Array, sha256: str, vocab_size: int | None = None, always: bool = False) -> None:
    """Verify the digest of a file, and the ids in it if it is a token file.

    Hashing takes less than a second per gigabyte. If this machine has verified the file before, and its size, inode and
    times have not changed since, it is not hashed again.

    Args:
        path: the file.
        content: the numbers in it, (N,).
        sha256: the expected digest.
        vocab_size: of a token file: every id must be below it.
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
    digest, largest = scan(content, path.name)
    if digest != sha256:
        raise UserError(
            f"{path}: its SHA-256 is not the one in corpus.json: the file was changed after it was prepared; restore a "
            f"copy, or delete {path.parent} and prepare it again"
        )
    if vocab_size is not None and largest >= vocab_size:
        raise UserError(
            f"{path}: it contains the token id {largest}, but the largest id of the vocabulary is {vocab_size - 1}: "
            f"prepare the corpus again"
        )
    write_verification(record, verified)


def scan(content: Array, name: str) -> tuple[str, int]:
    """Compute the SHA-256 of numbers (N,) and the largest one in one pass. Without numbers, the largest is -1."""
    digest, largest, step = hashlib.sha256(), -1, CHUNK_BYTES // content.itemsize
    disable = content.nbytes < PROGRESS_BAR_BYTES or None  # None: tqdm shows the bar only if stderr is a terminal
    with tqdm(
        total=content.nbytes, desc=f"verify {name}", unit="B", unit_scale=True, disable=disable, leave=False
    ) as bar:
        for start in range(0, len(content), step):
            chunk = content[start : start + step]
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
