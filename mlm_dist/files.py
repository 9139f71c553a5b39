"""Files and folders that appear when they are whole."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from mlm_dist.errors import UserError


def format_size(size: int) -> str:
    """A number of bytes in the unit that suits it: `512 bytes`, `1.5 kB`, `190.0 MB`, `2.4 GB`."""
    if size < 1000:
        return f"{size} bytes"
    unit, divisor = next((u, d) for u, d in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if size >= d)
    return f"{size / divisor:.1f} {unit}"


@contextmanager
def replacing(path: Path, shared: bool = False) -> Iterator[IO[bytes]]:
    """Open a file that takes `path`'s place, whole and on disk, when the block ends well; if not, nothing changes.

    Its name until then is always the same, so that what a kill leaves behind is overwritten the next time; but not if
    other processes, with which `path` is shared, may be writing it too.
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
    """Raise a UserError if there is something already where a new folder is to go."""
    if out.exists():
        raise UserError(f"{out} exists already: delete it or name another folder")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Give a folder beside `out` that becomes `out` if all goes well, and otherwise vanishes."""
    partial = out.absolute().with_name(f".{out.absolute().name}.partial-{secrets.token_hex(4)}")
    try:
        refuse_existing(out)
        partial.mkdir(parents=True)
        yield partial
        partial.rename(out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
