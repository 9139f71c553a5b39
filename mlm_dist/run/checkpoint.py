"""Checkpoints that are whole or not there: written beside, flushed to disk, described by digests, then renamed.

checkpoints/step-00001000/state.pt        what torch.save wrote
checkpoints/step-00001000/manifest.json   size and sha256 of each file, and the record of the run; written last
"""

import errno
import hashlib
import json
import os
import re
import shutil
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch

from mlm_dist.errors import UserError
from mlm_dist.files import open_regular, read_json
from mlm_dist.output import warn

STATE = "state.pt"
MANIFEST = "manifest.json"
NAME = re.compile(r"step-\d{8,}")


def save_checkpoint(
    folder: Path,
    step: int,
    state: dict[str, Any],
    keep: int,
    val_losses: Mapping[int, float] | None = None,
    record: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint and, once it is in place, delete those that are no longer wanted.

    Args:
        folder: of the run's checkpoints, which no other process may write into.
        step: steps taken so far.
        state: tensors and plain values, such as `torch.load(..., weights_only=True)` reads.
        keep: how many of the newest to keep, this one included.
        val_losses: held-out losses by step; the checkpoint with the lowest is kept besides.
        record: what the run was trained with, as plain JSON values. `read_record` returns it.

    Raises:
        OSError: the disk is full or the folder cannot be written. Older checkpoints are untouched.
    """
    place = folder / f"step-{step:08d}"
    partial = folder / f".{place.name}.partial"
    for left_by_a_kill in folder.glob(".step-*.partial"):
        shutil.rmtree(left_by_a_kill)
    partial.mkdir()
    try:
        with (partial / STATE).open("wb") as file:
            write(state, file)
        flush(partial / STATE)
        manifest = {"step": step, "files": {STATE: describe(partial / STATE)}, "record": record}
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        flush(partial / MANIFEST)
        flush(partial)
        shutil.rmtree(place, ignore_errors=True)  # one of the same step that was passed over as damaged
        partial.rename(place)
        flush(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for useless in find_useless(folder, step, keep, val_losses or {}):
        shutil.rmtree(useless, ignore_errors=True)


def find_useless(folder: Path, step: int, keep: int, val_losses: Mapping[int, float]) -> list[Path]:
    """The checkpoints that may go now that the one of `step` is in place.

    Checkpoints of later steps stay. A run saves an earlier step only where it could not read them, and a person may
    still be able to repair what training could not.

    Only sizes are compared here. Hashing every kept checkpoint at each save would read several times what is written.
    """
    earlier = [place for place in list_checkpoints(folder) if step_of(place) <= step]
    whole = [place for place in earlier if step_of(place) == step or find_damage(place, verify=False) is None]
    newest = whole[:keep]
    evaluated = [place for place in whole if step_of(place) in val_losses]
    best = min(evaluated, key=lambda place: val_losses[step_of(place)], default=None)
    return [place for place in earlier if step_of(place) < step_of(newest[-1]) and place != best]


def step_of(place: Path) -> int:
    """Steps taken up to a checkpoint, by its name."""
    return int(place.name.removeprefix("step-"))


def list_checkpoints(folder: Path) -> list[Path]:
    """All checkpoints, the newest first."""
    return sorted((path for path in folder.glob("step-*") if NAME.fullmatch(path.name)), key=step_of, reverse=True)


def find_newest(folder: Path) -> Path | None:
    """The newest checkpoint that is whole, with a warning for each newer one that is damaged; None if there is none.

    Raises:
        UserError: there are checkpoints, and all of them are damaged.
    """
    damages: dict[Path, str] = {}
    for place in list_checkpoints(folder):
        damage = find_damage(place)
        if damage is None:
            for damaged, reason in damages.items():
                warn(f"{damaged} is passed over: {reason}")
            return place
        damages[place] = damage
    if damages:
        listed = "; ".join(f"{place.name}: {damage}" for place, damage in damages.items())
        raise UserError(
            f"{folder}: every checkpoint is damaged ({listed}). Restore a copy of one, or delete them to train from "
            f"step 0, or give another run_dir"
        )
    return None


def find_damage(place: Path, verify: bool = True) -> str | None:
    """Say what is wrong with a checkpoint, going by its manifest; None if nothing is.

    Args:
        place: path of the checkpoint.
        verify: compare digests; otherwise sizes alone.
    """
    try:
        manifest = read_manifest(place)
        if list(manifest["files"]) != [STATE] or manifest["step"] != step_of(place):
            return f"{MANIFEST} is of another checkpoint"
        if manifest.get("record") is not None and read_record(place) is None:
            return f"the record in {MANIFEST} cannot be read"
        expected = manifest["files"][STATE]
        if (place / STATE).stat().st_size != expected["size"] or (verify and describe(place / STATE) != expected):
            return f"{STATE} is not what {MANIFEST} describes"
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be read"
    return None


def read_manifest(place: Path) -> Any:
    """The content of a checkpoint's manifest.json.

    Raises:
        OSError, ValueError: the file cannot be read.
    """
    return read_json(place / MANIFEST)


def read_record(place: Path) -> dict[str, dict[str, Any]] | None:
    """The record of the run that a checkpoint is of, as `mlm_dist.run.record` describes it.

    None if there is none, as in a checkpoint of an earlier version, or it cannot be read.
    """
    try:
        record = read_manifest(place)["record"]
        return {part: dict(record[part]) for part in ("fixed", "adjustable")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def load_checkpoint(place: Path) -> dict[str, Any]:
    """Read the state that `save_checkpoint` was given, onto the CPU. It is to have been checked by `find_newest`.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        return load_tensors(place / STATE)
    except OSError as error:
        raise UserError(f"{place / STATE}: {error.strerror}; every machine has to see the run directory") from error
    except ValueError as error:
        raise UserError(f"{place / STATE} holds something other than tensors and plain values") from error


def load_tensors(file: Path) -> dict[str, Any]:
    """Read a mapping of names to tensors and plain values that `torch.save` wrote, onto the CPU. No code in it runs.

    Raises:
        OSError: it cannot be read, or is no regular file.
        ValueError: it holds something else.
    """
    with open_regular(file) as content:
        try:
            parts = zipfile.ZipFile(content).infolist()
            # torch.save compresses nothing: a part that is larger inside would take any amount of memory.
            if sum(part.file_size for part in parts) > os.fstat(content.fileno()).st_size:
                raise ValueError("it unfolds to more than it is")
            content.seek(0)
            with warnings.catch_warnings(action="ignore"):
                state: Any = torch.load(content, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception as error:  # torch's reader has no type of its own for what it cannot make sense of
            raise ValueError(f"it is not what torch.save writes: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise ValueError("it is no mapping of names")
    return state


def describe(file: Path) -> dict[str, Any]:
    """Size and digest of a file."""
    with open_regular(file) as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
        return {"size": os.fstat(content.fileno()).st_size, "sha256": digest}


def write(state: dict[str, Any], file: IO[bytes]) -> None:
    """Have torch write into an open file.

    Raises:
        OSError: where torch itself raises a RuntimeError that says nothing of the disk.
    """
    try:
        torch.save(state, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise


def flush(path: Path) -> None:
    """Have the system write a file, or, where the file system can do that, a folder's list of names to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
    finally:
        os.close(handle)
