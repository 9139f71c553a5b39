"""Atomic checkpoints: written under a temporary name with their digests, flushed to disk, then renamed.

checkpoints/step-00001000/state.pt        written by torch.save
checkpoints/step-00001000/manifest.json   size and SHA-256 of each file, and the run's record; written last

state.pt contains what `TrainState.state_dict` in training/state.py returns: the parameters, with `optim.ema` their
average, the states of the optimizers and of the fp16 scaler, the step, the seconds of training, the number of
consecutive skipped steps, and a format version.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch

from mlm_dist.errors import UserError
from mlm_dist.fault_points import reached
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
    """Write a checkpoint and then delete the expired ones.

    Args:
        folder: the run's checkpoint folder; no other process may write into it.
        step: steps taken so far.
        state: tensors and plain values that `torch.load(..., weights_only=True)` can read.
        keep: number of newest checkpoints to keep, including this one.
        val_losses: validation losses by step; the checkpoint with the lowest is also kept.
        record: the run's record as plain JSON values; `read_record` returns it.

    Raises:
        OSError: the disk is full or the folder cannot be written. Older checkpoints are unchanged.
    """
    write_step(folder, step, state, record)
    reached("checkpoint saved")
    for expired in find_expired(folder, step, keep, val_losses or {}):
        shutil.rmtree(expired, ignore_errors=True)


def write_step(folder: Path, step: int, state: dict[str, Any], record: Mapping[str, Any] | None) -> None:
    """Write the state of a step and its manifest, atomically, with the arguments and errors of `save_checkpoint`."""
    path = folder / step_name(step)
    partial = folder / f".{path.name}.partial"
    for incomplete in folder.glob(".step-*.partial"):
        shutil.rmtree(incomplete)
    partial.mkdir()
    try:
        reached("checkpoint begins")
        with (partial / STATE).open("wb") as file:
            save_tensors(state, file)
            reached("state written")
        fsync(partial / STATE)
        reached("state flushed")
        manifest = {"step": step, "files": {STATE: fingerprint(partial / STATE)}, "record": record}
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        fsync(partial / MANIFEST)
        fsync(partial)
        reached("checkpoint flushed")
        shutil.rmtree(path, ignore_errors=True)  # a damaged checkpoint of the same step
        partial.rename(path)
        reached("checkpoint renamed")
        fsync(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def find_expired(folder: Path, step: int, keep: int, val_losses: Mapping[int, float]) -> list[Path]:
    """The checkpoints to delete once `step` is saved.

    Checkpoints of later steps are kept. A run saves an earlier step only if they are damaged, and the user may still be
    able to repair them.

    Only sizes are compared. Hashing every checkpoint at each save would read several times as much as is written.
    """
    earlier = [path for path in list_checkpoints(folder) if step_of(path) <= step]
    undamaged = [path for path in earlier if step_of(path) == step or find_damage(path, verify=False) is None]
    newest = undamaged[:keep]
    best = find_best(undamaged, val_losses)
    return [path for path in earlier if step_of(path) < step_of(newest[-1]) and path != best]


def step_name(step: int) -> str:
    """The name of the checkpoint of a step."""
    return f"step-{step:08d}"


def find_best(checkpoints: Sequence[Path], val_losses: Mapping[int, float]) -> Path | None:
    """Of these checkpoints, the one with the lowest validation loss, the earliest of several; None if none has one."""
    evaluated = [path for path in checkpoints if step_of(path) in val_losses]
    return min(evaluated, key=lambda path: (val_losses[step_of(path)], step_of(path)), default=None)


def step_of(path: Path) -> int:
    """The step of a checkpoint, from its name."""
    return int(path.name.removeprefix("step-"))


def list_checkpoints(folder: Path) -> list[Path]:
    """All checkpoints, newest first."""
    return sorted((path for path in folder.glob("step-*") if NAME.fullmatch(path.name)), key=step_of, reverse=True)


def find_newest(folder: Path) -> Path | None:
    """The newest undamaged checkpoint, with a warning for each newer, damaged one; None if there is no checkpoint.

    Raises:
        UserError: all checkpoints are damaged.
    """
    reasons: dict[Path, str] = {}
    for path in list_checkpoints(folder):
        damage = find_damage(path)
        if damage is None:
            for damaged, reason in reasons.items():
                warn(f"{damaged} is skipped: {reason}")
            return path
        reasons[path] = damage
    if reasons:
        listed = "; ".join(f"{path.name}: {damage}" for path, damage in reasons.items())
        raise UserError(
            f"{folder}: every checkpoint is damaged ({listed}). Restore a copy of one, or delete them to train from "
            f"step 0, or give another run_dir"
        )
    return None


def find_damage(path: Path, verify: bool = True) -> str | None:
    """What is wrong with a checkpoint, according to its manifest; None if it is undamaged.

    Args:
        path: the checkpoint path.
        verify: compare sizes and digests; otherwise only sizes.
    """
    try:
        manifest = read_manifest(path)
        if list(manifest["files"]) != [STATE] or manifest["step"] != step_of(path):
            return f"{MANIFEST} belongs to a different checkpoint"
        if manifest.get("record") is not None and read_record(path) is None:
            return f"the record in {MANIFEST} cannot be read"
        expected = manifest["files"][STATE]
        if (path / STATE).stat().st_size != expected["size"] or (verify and fingerprint(path / STATE) != expected):
            return f"{STATE} does not match {MANIFEST}"
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be read"
    return None


def read_manifest(path: Path) -> Any:
    """The content of a checkpoint's manifest.json.

    Raises:
        OSError, ValueError: the file cannot be read.
    """
    return read_json(path / MANIFEST)


def read_record(path: Path) -> dict[str, dict[str, Any]] | None:
    """The run's record in a checkpoint (see `mlm_dist.run.record`).

    None if the checkpoint has no record, as in an earlier version, or if the record cannot be read.
    """
    try:
        record = read_manifest(path)["record"]
        return {part: dict(record[part]) for part in ("fixed", "adjustable")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def load_checkpoint(path: Path, mapped: bool = False) -> dict[str, Any]:
    """Read the state of a checkpoint that `find_newest` has verified, onto the CPU.

    Args:
        path: the checkpoint path.
        mapped: as in `load_tensors`.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        return load_tensors(path / STATE, mapped)
    except OSError as error:
        raise UserError(f"{path / STATE}: {error.strerror}; every machine must be able to read run_dir") from error
    except ValueError as error:
        raise UserError(f"{path / STATE} contains something other than tensors and plain values") from error


def model_parameters(state: dict[str, Any]) -> dict[str, Any]:
    """The parameters of the model in the state of a checkpoint or milestone: with `optim.ema`, the average."""
    parameters: dict[str, Any] = state.get("ema", state.get("model", {}))
    return parameters


def load_tensors(file: Path, mapped: bool = False) -> dict[str, Any]:
    """Read a dict of tensors and plain values that `torch.save` wrote, onto the CPU. No code in the file runs.

    Args:
        file: the file.
        mapped: leave the tensors in the file, which is mapped into memory: for a caller that copies them to a GPU. The
            processes of a machine then share one copy, and it may be larger than the memory.

    Raises:
        OSError: it cannot be read, or is not a regular file.
        ValueError: it contains anything else.
    """
    with open_regular(file) as content:
        try:
            archive = zipfile.ZipFile(content)
            # torch.save does not compress. A compressed part could expand to any size in memory.
            if sum(part.file_size for part in archive.infolist()) > os.fstat(content.fileno()).st_size:
                raise ValueError("it is compressed")
            if not mapped and archive.testzip():  # torch itself does not compare the checksums
                raise ValueError("a checksum is wrong")
            content.seek(0)
            with warnings.catch_warnings(action="ignore"):
                source = file if mapped else content
                state: Any = torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
        except OSError:
            raise
        except Exception as error:  # torch has no exception type of its own for a file that it cannot parse
            raise ValueError(f"it was not written by torch.save: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise ValueError("it is not a dict with names as keys")
    return state


def fingerprint(file: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file."""
    with open_regular(file) as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
        return {"size": os.fstat(content.fileno()).st_size, "sha256": digest}


def save_tensors(state: dict[str, Any], file: IO[bytes]) -> None:
    """Write a dict of tensors and plain values into an open file with `torch.save`.

    Raises:
        OSError: for example, the disk is full. torch itself raises a RuntimeError that does not mention the disk.
    """
    try:
        torch.save(state, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise


def fsync(path: Path) -> None:
    """Flush a file to disk, or a folder if the file system supports that."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
    finally:
        os.close(handle)
