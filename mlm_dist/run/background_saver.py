"""Checkpoints written while training goes on."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mlm_dist.output import warn
from mlm_dist.run.checkpoint import save_checkpoint


class BackgroundSaver:
    """Writes one checkpoint at a time in a thread of its own.

    A write that fails is warned of when the training next asks, and costs nothing else: the checkpoints before it stay,
    and the next one is written in its turn.

    Args:
        folder: of the run's checkpoints.
        keep: how many of the newest are kept.
        record: what the run is trained with, stored in each checkpoint.

    Attributes:
        failed: whether the last write has come to nothing.
    """

    def __init__(self, folder: Path, keep: int, record: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        self.keep = keep
        self.record = record
        self.failed = False
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(self, step: int, state: dict[str, Any], val_losses: Mapping[int, float]) -> None:
        """Copy the state and begin to write it, once the write before has ended.

        Args:
            step: steps taken so far.
            state: tensors on any device and plain values. It may change as soon as this returns.
            val_losses: held-out losses by step so far; the checkpoint with the lowest is kept.
        """
        self.wait()
        arguments = (step, copy_to_cpu(state), dict(val_losses))
        self._thread = threading.Thread(target=self._write, args=arguments, name="checkpoint", daemon=True)
        self._thread.start()

    def report(self) -> None:
        """Warn of a write that has failed since this was last called."""
        if self._thread and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Wait until no write is under way, and warn if the last has failed."""
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        self.failed = self._error is not None
        if isinstance(self._error, OSError):
            warn(f"a checkpoint could not be written ({self._error.strerror}); the older ones stay, training goes on")
        elif self._error:
            raise self._error

    def _write(self, step: int, state: dict[str, Any], val_losses: Mapping[int, float]) -> None:
        self._error = None
        try:
            save_checkpoint(self.folder, step, state, self.keep, val_losses, self.record)
        except Exception as error:  # whatever it is, the training's own thread has to hear of it
            self._error = error


def copy_to_cpu(value: Any, copies: dict[tuple[Any, ...], torch.Tensor] | None = None) -> Any:
    """Copy the tensors in nested dicts and lists to the CPU's memory, one that stands there twice (tied weights) once.

    Args:
        value: to be copied.
        copies: made so far, by what they are copies of.
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
