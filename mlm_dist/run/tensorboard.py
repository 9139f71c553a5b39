"""A sink that writes the figures of a run for TensorBoard, if it is installed."""

import threading
from pathlib import Path
from typing import Any

from mlm_dist.output import warn
from mlm_dist.run.metrics import Event


class TensorBoard:
    """Writes figures for TensorBoard. Does nothing if it is not installed or can no longer write.

    Args:
        folder: where to write.
        first_step: steps taken so far. Figures of later steps, of a process that was killed, are hidden.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self._writer: Any = None
        self._previous_hook = threading.excepthook
        try:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 (may not be installed)

            self._writer = SummaryWriter(str(folder), purge_step=first_step + 1)
        except ImportError:
            return
        except Exception as error:  # it may be broken, or built against another version of something
            warn(f"TensorBoard cannot be written ({type(error).__name__}: {error}); metrics.jsonl has all figures")
        threading.excepthook = print_unless_reported

    def add(self, kind: str, event: Event) -> None:
        """Add the figures of an event, in a group named after its kind."""
        figures = {key.removeprefix("val_"): value for key, value in event.items() if isinstance(value, float)}
        try:
            for name, figure in figures.items() if self._writer else ():
                self._writer.add_scalar(f"{kind}/{name}", figure, event["step"])
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
        threading.excepthook = self._previous_hook

    def abandon(self) -> None:
        """Close: TensorBoard keeps what it can write."""
        self.close()

    def _give_up(self, error: OSError) -> None:
        warn(f"TensorBoard can no longer be written ({error.strerror}); metrics.jsonl has all figures")
        self._writer = None


def print_unless_reported(failure: threading.ExceptHookArgs) -> None:
    """Print a thread's traceback, except for a write of TensorBoard that failed: the next call to it raises that."""
    if not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)
