"""Finds the files that texts are read from."""

import dataclasses
import glob
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

from mlm_dist.errors import UserError
from mlm_dist.files import open_regular
from mlm_dist.output import warn
from mlm_dist.texts.formats import (
    FORMATS,
    Compression,
    Format,
    compression_of,
    format_of,
    refuse_suffix,
)

STANDARD_INPUT = Path("-")

# The files that `datasets` describes its own with, and the splits of a `DatasetDict` that are not trained on.
DATASET_DICT = "dataset_dict.json"
DATASET_FILES = {DATASET_DICT, "dataset_info.json", "state.json"}
VALIDATION_SPLITS = {"validation", "valid", "val", "dev"}
TEST_SPLITS = {"test"}

README = "README.md"
MOST_SUFFIXES = 5  # in the line about skipped files

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")


@dataclass(frozen=True)
class TextFile:
    """A file with one text or many.

    Attributes:
        name: the name in the corpus: the path relative to the given folder, or the file name.
        path: the path of the file.
        size: its size in bytes.
        is_validation: whether all of its texts are in the validation split.
        format: its format, once it is decompressed; None: to be detected by its first bytes, as its compression.
        compression: its compression.
        modified: when it was last modified, in nanoseconds.
    """

    name: str
    path: Path
    size: int
    is_validation: bool = False
    format: Format | None = "text"
    compression: Compression | None = None
    modified: int = 0

    def open(self) -> BinaryIO:
        """Open the file.

        Raises:
            OSError: it cannot be read, or is not a regular file.
        """
        return open_regular(self.path)


@dataclass(frozen=True)
class StandardInput(TextFile):
    """Standard input, copied into a temporary file without a name, because texts are read more than once."""

    copy: BinaryIO = field(default_factory=tempfile.TemporaryFile)

    def open(self) -> BinaryIO:
        """Open the copy."""
        self.copy.seek(0)
        return os.fdopen(os.dup(self.copy.fileno()), "rb")


@dataclass(frozen=True)
class Found:
    """A file below those that were given, and whether it is in the validation split."""

    name: str
    path: Path
    is_validation: bool


def find_files(paths: Sequence[Path], val_paths: Sequence[Path] = ()) -> list[TextFile]:
    """List the files that texts are read from: the given ones, and those of a known format below the given folders.

    Args:
        paths: files, folders, patterns such as `data/*.jsonl`, and `-` for standard input.
        val_paths: those of the validation split.

    Raises:
        UserError: a path does not exist or cannot be read, a given file is empty or in a format that is not read, or
            there is no file with texts.
    """
    given = {*paths, *val_paths}
    files: dict[tuple[int, int], TextFile] = {}
    for found in [*walk(paths, is_validation=False), *walk(val_paths, is_validation=True)]:
        if found.path == STANDARD_INPUT:
            file, identity = read_standard_input(found.is_validation), (0, 0)
        else:
            file, identity = describe(found)
        if not file.size:
            if found.path in given:
                raise UserError(f"{file.path}: the file is empty")
            warn(f"skipped {file.path}: it is empty")
        elif identity not in files:
            files[identity] = file
        elif found.is_validation:
            files[identity] = dataclasses.replace(files[identity], is_validation=True)
    if not files:
        raise UserError(
            f"no text in {', '.join(map(str, [*paths, *val_paths]))}: give files, or folders with files, that end in "
            f"{' '.join(f'*{suffix}' for suffix in FORMATS)}, or with .gz or .zst after it"
        )
    return list(files.values())


def describe(found: Found) -> tuple[TextFile, tuple[int, int]]:
    """A file with its size and format, and what identifies it: its device and inode."""
    try:
        status = found.path.stat()
    except OSError as error:  # deleted since the folder was listed
        raise UserError(f"{found.path}: {error.strerror}") from error
    format_, compression = format_of(found.path) or "text", compression_of(found.path)
    file = TextFile(
        found.name, found.path, status.st_size, found.is_validation, format_, compression, status.st_mtime_ns
    )
    return file, (status.st_dev, status.st_ino)


def read_standard_input(is_validation: bool) -> TextFile:
    """Copy standard input into a temporary file."""
    copy = tempfile.TemporaryFile()  # noqa: SIM115 (it is read until the program ends)
    try:
        shutil.copyfileobj(sys.stdin.buffer, copy)
        copy.flush()
    except OSError as error:
        raise UserError(f"standard input cannot be copied into {tempfile.gettempdir()}: {error.strerror}") from error
    name = "standard input"
    return StandardInput(name, Path(name), copy.tell(), is_validation, None, copy=copy)


def walk(paths: Sequence[Path], is_validation: bool) -> Iterator[Found]:
    """The files below `paths`, in a fixed order. Warn about ignored files."""
    for path in paths:
        try:
            if path.is_dir():
                yield from walk_folder(path, is_validation)
            elif path.is_file():
                refuse_suffix(path)
                yield Found(path.name, path, is_validation)
            elif path == STANDARD_INPUT:
                yield Found(path.name, path, is_validation)
            elif not (matching := sorted(glob.glob(str(path), recursive=True))):  # noqa: PTH207 (it may be absolute)
                raise UserError(f"{path}: there is no such file or folder")
            else:
                yield from walk([Path(match) for match in matching], is_validation)
        except OSError as error:
            raise UserError(f"{error.filename or path}: {error.strerror}") from error


def walk_folder(folder: Path, is_validation: bool) -> Iterator[Found]:
    """The files of a known format anywhere below a folder. Warn about the others, counted by suffix.

    A README.md is left out too: it describes the texts.
    """
    skipped: Counter[str] = Counter()
    for found in walk_below(folder, "", is_validation):
        name = found.path.name
        if name.lower() == README.lower():
            skipped[README] += 1
        elif format_of(found.path):
            yield found
        elif name not in DATASET_FILES and not any(part.startswith(".") for part in found.name.split("/")):
            skipped[found.path.suffix] += 1
    if total := skipped.total():
        kinds = [f"{count:,} {suffix or 'without a suffix'}" for suffix, count in skipped.most_common(MOST_SUFFIXES)]
        if rest := total - sum(count for _, count in skipped.most_common(MOST_SUFFIXES)):
            kinds.append(f"{rest:,} others")
        warn(f"{folder}: skipped {total:,} {'file' if total == 1 else 'files'} ({', '.join(kinds)})")


def walk_below(folder: Path, prefix: str, is_validation: bool) -> Iterator[Found]:
    """All files below a folder, in the order of their names, without following links to folders.

    Of a `DatasetDict`, the validation split is validation text and the test split is left out.
    """
    with os.scandir(folder) as scan:
        entries = sorted(scan, key=lambda entry: entry.name)
    is_dict = any(entry.name == DATASET_DICT for entry in entries)
    for entry in entries:
        path, name = folder / entry.name, prefix + entry.name
        if entry.is_dir(follow_symlinks=False):
            if is_dict and entry.name in TEST_SPLITS:
                warn(f"{path}: left out, because it is the test split of a DatasetDict; give its path to read it")
                continue
            yield from walk_below(path, f"{name}/", is_validation or (is_dict and entry.name in VALIDATION_SPLITS))
        elif entry.is_file():
            yield Found(name, path, is_validation)
