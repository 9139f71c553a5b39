"""The lock of a run directory: one process at a time writes into it."""

import fcntl
import json
import os
import socket
from pathlib import Path
from typing import IO

from mlm_dist.errors import UserError
from mlm_dist.files import parse_json, refuse_irregular
from mlm_dist.output import warn

LONGEST_OWNER = 1000  # characters


def lock(path: Path) -> IO[str] | None:
    """Acquire a lock file. The system releases the locks of dead processes.

    Args:
        path: the lock file, with host and pid of its last owner. It is not deleted when the lock is released, because
            another process may already have opened it.

    Returns:
        The open file, which holds the lock until it is closed; None on a file system without locks.

    Raises:
        OSError: the file cannot be opened or written.
        UserError: another process has the lock, or the path is not a regular file.
    """
    file = open_lock(path)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = read_owner(file)
        file.close()
        raise UserError(f"{path.parent} is in use by {owner}: stop it, or use another folder") from error
    except OSError as error:
        file.close()
        warn(f"{path} cannot be locked ({error.strerror}): make sure that no other process uses this folder")
        return None
    file.truncate(0)
    file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}) + "\n")
    file.flush()
    return file


def open_lock(path: Path) -> IO[str]:
    """Open a lock file for reading and appending; create it if necessary.

    Raises:
        OSError: it cannot be opened.
        UserError: it is not a regular file.
    """
    if path.exists():
        try:
            refuse_irregular(path, path.stat())
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}: delete it") from error
    return path.open("a+", encoding="utf-8")


def read_owner(file: IO[str]) -> str:
    """The owner recorded in a lock file, for a message."""
    file.seek(0)
    try:
        owner = parse_json(file.read(LONGEST_OWNER))
        return f"process {owner['pid']} on {owner['host']}"
    except (ValueError, KeyError, TypeError):  # its owner has not finished writing it
        return "another process"
