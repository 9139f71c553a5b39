"""Writing checkpoints in the background while training continues."""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from mlm_dist.output import warn
from mlm_dist.run.checkpoint import save_checkpoint
from mlm_dist.run.milestones import save_milestone

CHECKPOINT = "a checkpoint"


class BackgroundSaver:
    """Writes one checkpoint or milestone at a time in a thread.

    `save`, `save_milestone`, `report` and `wait` handle the error of the previous write. An `OSError` is printed as a
    warning, and training continues with the older checkpoints. Any other exception is a bug and is raised.

    Args:
        folder: the run's checkpoint folder.
        keep: number of newest checkpoints to keep.
        record: the run's record, stored in each checkpoint.

    Attributes:
        failed: whether the last completed write of a checkpoint failed.
    """

    def __init__(self, folder: Path, keep: int, record: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        self.keep = keep
        self.record = record
        self.failed = False
        self._thread: threading.Thread | None = None
        self._what = ""  # is written
        self._error: Exception | None = None

    def save(self, step: int, state: dict[str, Any], val_losses: Mapping[int, float]) -> None:
        """Wait for the previous write, then copy the state and start to write it.

        Args:
            step: steps taken so far.
            state: tensors on any device and plain values. It may change as soon as this returns.
            val_losses: validation losses by step; the checkpoint with the lowest is kept.
        """
        self.wait()
        content, losses = copy_to_cpu(state), dict(val_losses)
        self._start(CHECKPOINT, lambda: save_checkpoint(self.folder, step, content, self.keep, losses, self.record))

    def save_milestone(self, folder: Path, step: int, state: dict[str, Any]) -> None:
        """Wait for the previous write, then copy the state of a milestone and start to write it into `folder`."""
        self.wait()
        content = copy_to_cpu(state)
        self._start(f"the milestone of step {step}", lambda: save_milestone(folder, step, content, self.record))

    def report(self) -> None:
        """Handle the error of a write that has ended. Does not wait."""
        if self._thread and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Wait for the current write, and handle its error."""
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        if self._what == CHECKPOINT:
            self.failed = self._error is not None
        if isinstance(self._error, OSError):
            warn(
                f"{self._what} could not be written ({self._error.strerror}); the older ones are kept, and training "
                f"continues"
            )
        elif self._error:
            raise self._error

    def _start(self, what: str, write: Callable[[], None]) -> None:
        self._what = what
        self._thread = threading.Thread(target=self._run, args=(write,), name="checkpoint", daemon=True)
        self._thread.start()

    def _run(self, write: Callable[[], None]) -> None:
        self._error = None
        try:
            write()
        except Exception as error:  # handled in the training thread
            self._error = error


def copy_to_cpu(value: Any, copies: dict[tuple[Any, ...], torch.Tensor] | None = None) -> Any:
    """Copy the tensors in nested dicts and lists to the CPU. Identical views of the same memory are copied once.

    Args:
        value: a tensor, a dict, a list, or any other value, which is returned as it is.
        copies: the copies made so far, by address, offset, shape and stride of the original.
    """
    copies = {} if copies is None else copies
    if isinstance(value, torch.Tensor):
        original = (value.untyped_storage().data_ptr(), value.storage_offset(), value.shape, value.stride())
        if not value.numel() or original not in copies:
            copies[original] = value.detach().to("cpu", copy=True)
        return copies[original]
    if isinstance(value, dict):
        return {key: copy_to_cpu(part, copies) for key, part in value.items()}
    if isinstance(value, list):
        return [copy_to_cpu(part, copies) for part in value]
    return value
