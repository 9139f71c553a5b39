"""The run directory: the paths of its files, and which config may continue the run."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mlm_dist.config import Config
from mlm_dist.config_reading import read_config
from mlm_dist.data.tokenizer import Tokenizer
from mlm_dist.errors import RunError, UserError
from mlm_dist.fault_points import reached
from mlm_dist.files import format_size, read_text, replacing
from mlm_dist.run.checkpoint import list_checkpoints, read_record, save_tensors
from mlm_dist.run.lock import lock
from mlm_dist.run.origin import Origin
from mlm_dist.run.record import Values, differences, fixed_values
from mlm_dist.source import CHECKPOINTS, CONFIG, MODEL

MAX_DIGITS = 16  # of a step
MAKE_ROOM = "make room on the disk; the same command continues from the last checkpoint"


class RunDir:
    """The directory of a run.

    Attributes:
        path: the directory itself.
        config: config.yaml, with every key.
        machine: machine.json, which describes the machine of the last training process.
        origin: origin.json, which describes what the run started from, if the config has `init_from`.
        metrics: metrics.jsonl, one line per event.
        checkpoints: the folder of step-00001000/ etc.
        milestones: the folder of the steps in `checkpoint.milestones`.
        model: model.pth, the final `state_dict`.
        averaged: averaged.json, in the output of `average`: what model.pth is the mean of (run/averaged.py).
        curves: the plot of losses, learning rate and throughput.
        tokenizer: the folder of the tokenizer.
        done: marks a finished run; contains the step of the parameters in model.pth.
        stop: a file that asks the run to save a checkpoint and stop; the run deletes it.
        stopped: why an unfinished run has stopped; deleted when it is resumed.
        lock: the lock file, with the host and pid of the process that writes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / CONFIG
        self.machine = path / "machine.json"
        self.origin = path / "origin.json"
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / CHECKPOINTS
        self.milestones = path / "milestones"
        self.model = path / MODEL
        self.averaged = path / "averaged.json"
        self.curves = path / "plots" / "curves.png"
        self.tokenizer = path / "tokenizer"
        self.done = path / "DONE"
        self.stop = path / "STOP"
        self.stopped = path / "STOPPED"
        self.lock = path / ".lock"
        self._lock: IO[str] | None = None

    def check(self, config: Config) -> None:
        """Raise `UserError` if the directory has a run that `config` cannot resume. Writes nothing.

        The corpus is compared later, by `mlm_dist.training.resume`.
        """
        checkpoints = list_checkpoints(self.checkpoints)
        if self.model.exists() and not checkpoints:
            raise UserError(
                f"run_dir {self.path} has the final parameters of a run, but no checkpoint to resume from: delete the "
                f"folder, or give another run_dir"
            )
        if checkpoints:
            check_same_run(self.recorded_values(), fixed_values(config), self.path)

    def recorded_values(self) -> Values:
        """The fixed values of the run, from its newest checkpoint with a record; in earlier versions, from config.yaml.

        Raises:
            UserError: neither has them, or config.yaml is damaged.
        """
        for path in list_checkpoints(self.checkpoints):
            if record := read_record(path):
                return record["fixed"]
        if not self.config.exists():
            raise UserError(
                f"run_dir {self.path} has checkpoints, but the config they were trained with is neither in them nor in "
                f"{self.config.name}: restore {self.config.name}, or give another run_dir"
            )
        return fixed_values(read_config(self.config))

    def fill_vocab_size(self, config: Config) -> Config:
        """The config, with the vocabulary size of an existing run if `model.vocab_size` is null. Writes nothing."""
        if config.model.vocab_size is None and list_checkpoints(self.checkpoints):
            return config.with_vocab_size(self.recorded_values().get("model.vocab_size"))
        return config

    def check_space(self, checkpoint_bytes: int, config: Config, milestone_bytes: int = 0) -> None:
        """Raise `UserError` if the disk has no room for the checkpoints and milestones of the run. Writes nothing.

        Args:
            checkpoint_bytes: of one checkpoint.
            config: of the run.
            milestone_bytes: of all milestones.
        """
        count = most_checkpoints(config)
        saved, marked = (sum(f.stat().st_size for f in at.glob("*/*")) for at in (self.checkpoints, self.milestones))
        needed = count * checkpoint_bytes - saved + max(0, milestone_bytes - marked)
        parent = next(folder for folder in [self.path, *self.path.absolute().parents] if folder.exists())
        disk = shutil.disk_usage(parent)
        if not disk.total:
            raise UserError(f"run_dir {self.path} is on a file system that cannot store files: give another run_dir")
        if needed > disk.free:
            milestones = " and the milestones" if milestone_bytes else ""
            raise UserError(
                f"run_dir {self.path} needs {format_size(needed)} more for {count} checkpoints{milestones}, but only "
                f"{format_size(disk.free)} are free: make room, lower checkpoint.keep, or give another run_dir"
            )

    def acquire(self) -> None:
        """Create the directory and acquire its lock, until `close` or the end of this process.

        Raises:
            UserError: the directory cannot be written, or another process has the lock.
        """
        with self.user_error_if_unwritable():
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._lock = lock(self.lock)

    def close(self) -> None:
        """Release the lock, if this process has it."""
        if self._lock:
            self._lock.close()
        self._lock = None

    def begin(self, config: Config, tokenizer: Tokenizer, origin: Origin | None = None) -> None:
        """Write the config, the tokenizer and what the run started from, and delete DONE and STOPPED.

        Raises:
            UserError: the directory cannot be written.
        """
        with self.user_error_if_unwritable():
            tokenizer.save(self.tokenizer)
            reached("tokenizer saved")
            if origin:
                origin.write(self.origin)
                reached("origin written")
            with replacing(self.config) as file:
                file.write(config.to_yaml().encode())
            self.done.unlink(missing_ok=True)
            self.stopped.unlink(missing_ok=True)

    def record_machine(self, machine: Mapping[str, str | int]) -> None:
        """Write machine.json.

        Raises:
            UserError: it cannot be written.
        """
        with self.user_error_if_unwritable(), replacing(self.machine) as file:
            file.write((json.dumps(machine, indent=1) + "\n").encode())

    def write_model(self, parameters: dict[str, Any]) -> None:
        """Write model.pth. Raises `OSError`."""
        with replacing(self.model) as file:
            save_tensors(parameters, file)
            reached("model.pth written")

    def mark_done(self, step: int) -> None:
        """Mark the run as finished, with the parameters of a step in model.pth. Raises `OSError`."""
        with replacing(self.done) as file:
            file.write(f"{step}\n".encode())

    def final_step(self) -> int | None:
        """The step of the parameters in model.pth; None if it is not recorded, as in earlier versions."""
        try:
            return int(read_text(self.done, largest=MAX_DIGITS))
        except (OSError, ValueError):
            return None

    @contextmanager
    def user_error_if_unwritable(self) -> Iterator[None]:
        """Raise an `OSError` of the block as a `UserError`."""
        try:
            yield
        except OSError as error:
            raise UserError(f"run_dir {self.path} cannot be written: {error.strerror}") from error

    @contextmanager
    def run_error_if_unwritable(self) -> Iterator[None]:
        """Raise an `OSError` of the block, in the middle of a run, as a `RunError`."""
        try:
            yield
        except OSError as error:
            raise RunError(f"{self.path} cannot be written ({error.strerror}): {MAKE_ROOM}") from error


def most_checkpoints(config: Config) -> int:
    """The most checkpoints that a run has on the disk at a time."""
    newest = config.checkpoint.keep
    if not config.train.patience:  # which also saves at evaluations
        newest = min(newest, config.train.max_iters // config.checkpoint.interval)
    return newest + 2  # the best one, and the one that is being written


def not_a_run_directory(path: Path, missing: str) -> UserError:
    """The error about a path that is not a run directory, because it contains no file of this name."""
    if path.is_dir():
        return UserError(f"{path} is not a run directory: it contains no {missing}")
    return UserError(f"{path} is not a run directory: {'it is a file' if path.exists() else 'there is no such folder'}")


def check_same_run(before: Values, now: Values, path: Path) -> None:
    """Raise `UserError` if a run would be resumed with different values from those it was started with."""
    if changes := differences(before, now):
        raise UserError(f"{path} was trained with {changes}: use the same values, or another run_dir")
