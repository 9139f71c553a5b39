"""Checkpoints that are whole or not there: written beside, flushed to disk, described by digests, then renamed.

checkpoints/step-00001000/state.pt        what torch.save wrote
checkpoints/step-00001000/manifest.json   size and sha256 of each file, written last
"""

import hashlib
import json
import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from mlm_dist.errors import UserError, warn

STATE = "state.pt"
MANIFEST = "manifest.json"
NAME = re.compile(r"step-\d{8,}")


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int) -> None:
    """Write a checkpoint and delete older ones, so that `keep` are left.

    Those of later steps go too: a run that saves an earlier step has passed them over as damaged.

    Args:
        folder: of the run's checkpoints.
        step: steps taken so far.
        state: tensors and plain values, such as `torch.load(..., weights_only=True)` reads.
        keep: how many to keep, this one included.

    Raises:
        OSError: the disk is full or the folder cannot be written. Older checkpoints are untouched.
    """
    place = folder / f"step-{step:08d}"
    partial = folder / f".{place.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        torch.save(state, partial / STATE)
        flush(partial / STATE)
        manifest = {"step": step, "files": {STATE: describe(partial / STATE)}}
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        flush(partial / MANIFEST)
        flush(partial)
        shutil.rmtree(place, ignore_errors=True)  # a damaged one of the same step
        partial.rename(place)
        flush(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    others = [other for other in list_checkpoints(folder) if other != place]
    later = [other for other in others if other > place]
    for useless in [*later, *others[len(later) :][keep - 1 :]]:
        shutil.rmtree(useless)


def list_checkpoints(folder: Path) -> list[Path]:
    """All checkpoints, the newest first."""
    return sorted((path for path in folder.glob("step-*") if NAME.fullmatch(path.name)), reverse=True)


def find_newest(folder: Path) -> Path | None:
    """The newest checkpoint that is whole; those that are not are passed over with a warning."""
    for place in list_checkpoints(folder):
        if damage := find_damage(place):
            warn(f"{place} is passed over: {damage}")
        else:
            return place
    return None


def find_damage(place: Path) -> str | None:
    """Say what is wrong with a checkpoint, going by its manifest; None if nothing is."""
    try:
        manifest = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
        for name, expected in manifest["files"].items():
            if describe(place / name) != expected:
                return f"{name} is not what {MANIFEST} describes"
        if STATE not in manifest["files"] or place.name != f"step-{manifest['step']:08d}":
            return f"{MANIFEST} is of another checkpoint"
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be read"
    return None


def load_checkpoint(place: Path) -> dict[str, Any]:
    """Read the state that `save_checkpoint` was given, onto the CPU. It is to have been checked by `find_newest`.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        state: dict[str, Any] = torch.load(place / STATE, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{place / STATE}: {error.strerror}; every machine has to see the run directory") from error
    except (RuntimeError, pickle.UnpicklingError) as error:
        raise UserError(f"{place / STATE} holds something other than tensors and plain values") from error
    return state


def describe(file: Path) -> dict[str, Any]:
    """Size and digest of a file."""
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return {"size": file.stat().st_size, "sha256": digest}


def flush(path: Path) -> None:
    """Have the system write a file or a folder's list of names to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
