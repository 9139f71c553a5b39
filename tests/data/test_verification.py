"""Token files are hashed once per machine, and again after any change."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from mlm_dist.data import verification
from mlm_dist.data.verification import scan, verify_file
from mlm_dist.errors import UserError

Tokens = np.ndarray


@pytest.fixture
def scanned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The names of the hashed files. Records go to a separate cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    names: list[str] = []

    def record(tokens: Tokens, name: str) -> tuple[str, int]:
        names.append(name)
        return scan(tokens, name)

    monkeypatch.setattr(verification, "scan", record)
    return names


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "train.bin"
    path.write_bytes(np.arange(100, dtype="<u2").tobytes())
    return path


def verify(path: Path, always: bool = False, vocab_size: int = 100, digest: str = "") -> None:
    tokens = np.memmap(path, dtype="<u2", mode="r")
    expected = digest or hashlib.sha256(np.arange(100, dtype="<u2").tobytes()).hexdigest()
    verify_file(path, tokens, expected, vocab_size, always)


def test_a_file_is_hashed_once(file: Path, scanned: list[str]) -> None:
    for _ in range(3):
        verify(file)
    assert scanned == ["train.bin"]


def test_always_hashes_a_file_every_time(file: Path, scanned: list[str]) -> None:
    for _ in range(3):
        verify(file, always=True)
    assert len(scanned) == 3


def test_a_file_is_hashed_again_for_a_different_digest_or_vocabulary_size(file: Path, scanned: list[str]) -> None:
    verify(file)
    with pytest.raises(UserError, match=r"train\.bin: its SHA-256 is not the one in corpus\.json"):
        verify(file, digest="0" * 64)
    with pytest.raises(UserError, match="it contains the token id 99, but the largest id of the vocabulary is 98"):
        verify(file, vocab_size=99)
    assert len(scanned) == 3


def test_a_changed_file_with_the_same_size_and_mtime_is_hashed_again(file: Path, scanned: list[str]) -> None:
    verify(file)
    status = file.stat()
    with file.open("r+b") as opened:
        opened.write(b"\x07")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    for _ in range(2):  # a refused file is not recorded as verified
        with pytest.raises(UserError, match="the file was changed after it was prepared"):
            verify(file)
    assert len(scanned) == 3


def test_a_file_replaced_by_a_copy_is_hashed_again(file: Path, scanned: list[str]) -> None:
    verify(file)
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content)
    verify(file)
    assert len(scanned) == 2


def test_a_damaged_record_only_causes_another_hash(file: Path, scanned: list[str], tmp_path: Path) -> None:
    verify(file)
    (record,) = (tmp_path / "cache" / "mlm_dist" / "verified").iterdir()
    for damage in (b"", b"[" * 100_000, b"\xff", b"{}"):
        record.write_bytes(damage)
        verify(file)
    verify(file)
    assert len(scanned) == 5


def test_without_a_cache_folder_a_file_is_hashed_every_time(
    file: Path, scanned: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file"))
    for _ in range(2):
        verify(file)
    assert len(scanned) == 2


def test_scan_returns_the_digest_of_the_bytes_and_the_largest_id_at_any_position(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(verification, "CHUNK_BYTES", 14)
    for dtype in ("<u2", "<u4"):
        for length in (0, 1, 6, 7, 8, 50):
            for position in range(length):
                tokens = np.ones(length, dtype=dtype)
                tokens[position] = 9
                assert scan(tokens, "") == (hashlib.sha256(tokens.tobytes()).hexdigest(), 9)
    assert scan(np.empty(0, dtype="<u2"), "") == (hashlib.sha256().hexdigest(), -1)
