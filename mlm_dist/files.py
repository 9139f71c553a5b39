"""Reading regular files only, and writing files and folders atomically."""

import errno
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

from mlm_dist.errors import UserError

# Upper bounds on the size of a file, in bytes.
LARGEST_SMALL_FILE = 1 << 22  # a JSON file with a few values
LARGEST_JSON = 1 << 30

KINDS = {stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}


def cache_folder() -> Path:
    """The folder for downloads and prepared corpora, which may not exist yet: `$XDG_CACHE_HOME/mlm_dist`.

    $XDG_CACHE_HOME is `~/.cache` by default.

    Raises:
        UserError: the user has no home folder and $XDG_CACHE_HOME is not set.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlm_dist"
    except RuntimeError as error:
        raise UserError("this user has no home folder: set XDG_CACHE_HOME to a cache folder") from error


def format_size(size: int) -> str:
    """A number of bytes in a suitable unit: `512 bytes`, `1.5 kB`, `190.0 MB`, `2.4 GB`."""
    if size < 1000:
        return f"{size} bytes"
    unit, divisor = next((u, d) for u, d in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if size >= d)
    return f"{size / divisor:.1f} {unit}"


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading. Reading from a FIFO or a device could block, or never end.

    Raises:
        OSError: it cannot be opened, or is not a regular file. `strerror` is the reason in words, `filename` the path.
    """
    refuse_irregular(path, path.stat())  # before opening: opening alone has side effects on some devices
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        refuse_irregular(path, os.fstat(handle))
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def refuse_irregular(path: Path, status: os.stat_result) -> None:
    """Raise an OSError that names the path and its kind, unless it is a regular file."""
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        kind = KINDS.get(stat.S_IFMT(status.st_mode), "special file")
        raise OSError(errno.ENXIO, f"it is a {kind}, not a regular file", str(path))


def read_bytes(path: Path, largest: int | None = None) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: as `open_regular`, or it has more than `largest` bytes.
    """
    with open_regular(path) as file:
        content = file.read() if largest is None else file.read(largest + 1)
    if largest is not None and len(content) > largest:
        raise OSError(errno.EFBIG, f"it is larger than {format_size(largest)}, the limit for such a file", str(path))
    return content


def read_text(path: Path, errors: str = "strict", largest: int | None = None) -> str:
    """The UTF-8 text of a regular file.

    Raises:
        OSError: as `read_bytes`.
        UnicodeDecodeError: it is not UTF-8, and `errors` is `strict`.
    """
    return read_bytes(path, largest).decode(errors=errors)


def read_json(path: Path, largest: int = LARGEST_SMALL_FILE) -> Any:
    """The content of a JSON file.

    Raises:
        OSError: as `read_bytes`.
        ValueError: it is not UTF-8, or as `parse_json`.
    """
    try:
        return parse_json(read_text(path, largest=largest))
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 at byte {error.start}") from error


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is not JSON, is nested too deeply, or has a number with thousands of digits.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON at line {error.lineno}, column {error.colno}") from error
    except ValueError as error:  # Python's own message is about settings of the interpreter
        raise ValueError("a number in it has too many digits") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


@contextmanager
def replacing(path: Path, shared: bool = False) -> Iterator[IO[bytes]]:
    """Open a temporary file that is flushed to disk and renamed to `path` if the block succeeds, otherwise deleted.

    Args:
        path: the file to replace.
        shared: whether several processes may write `path` at the same time. Otherwise, the temporary name is always the
            same, so that a file left by a killed process is overwritten.

    Raises:
        OSError: the file cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial{f'-{secrets.token_hex(4)}' if shared else ''}")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def refuse_existing(out: Path) -> None:
    """Raise a `UserError` if the path of a new folder exists."""
    if out.exists():
        raise UserError(f"{out} already exists: choose another path, or delete it first")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that is renamed to `out` if the block succeeds, otherwise deleted.

    Raises:
        UserError: `out` exists or cannot be written, or an `OSError` occurs in the block.
    """
    partial = out.absolute().with_name(f".{out.absolute().name}.partial-{secrets.token_hex(4)}")
    try:
        refuse_existing(out)
        partial.mkdir(parents=True)
        yield partial
        partial.rename(out)
    except OSError as error:
        if error.filename and not Path(error.filename).absolute().is_relative_to(partial.parent):
            raise UserError(f"{error.filename}: {error.strerror}") from error
        raise UserError(f"{out}: cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
