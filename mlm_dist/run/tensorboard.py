"""A run's figures for TensorBoard, where that is installed."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlm_dist.errors import warn


class TensorBoard:
    """Writes figures for TensorBoard; does nothing where it is not installed or can no longer write.

    Args:
        folder: where to.
        first_step: steps taken so far. What was written of later ones, by a process that was killed, is not shown.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self._writer: Any = None
        self._hook_before = threading.excepthook
        try:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 (there may be none)

            self._writer = SummaryWriter(str(folder), purge_step=first_step + 1)
        except ImportError:
            return
        except Exception as error:  # whatever is wrong with it, or with what it was compiled against
            warn(f"nothing is written for TensorBoard ({type(error).__name__}: {error}); metrics.jsonl has it all")
        threading.excepthook = print_unless_heard

    def add(self, group: str, figures: Mapping[str, float], step: int) -> None:
        """Add figures of a step."""
        try:
            for name, figure in figures.items() if self._writer else ():
                self._writer.add_scalar(f"{group}/{name}", figure, step)
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Write what is left."""
        try:
            if self._writer:
                self._writer.close()
        except OSError as error:
            self._give_up(error)
        self._writer = None
        threading.excepthook = self._hook_before

    def _give_up(self, error: OSError) -> None:
        warn(f"nothing more is written for TensorBoard ({error.strerror}); metrics.jsonl has it all")
        self._writer = None


def print_unless_heard(failure: threading.ExceptHookArgs) -> None:
    """Print a thread's traceback, but not of what TensorBoard's failed to write: the next call to it raises that."""
    if not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)
