"""Stop requests: by signal, by time limit, or by a file.

Nothing here imports torch, because a signal may arrive during the seconds that the import takes.
"""

import signal
import threading
import time
from pathlib import Path
from types import FrameType

# torchrun forwards TERM and INT. The user chooses the signal of Slurm's warnings, usually USR1.
SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)

LOOKUP_SECONDS = 0.1


class StopRequest:
    """A request to this process to stop. A second Ctrl-C raises KeyboardInterrupt instead.

    The signal handlers only set a flag, because a signal may interrupt anything. Training checks it between two steps.
    At the end of its `with` block, the previous handlers are restored. Python sets handlers in the main thread only; in
    another thread, only the time limit applies.

    Args:
        minutes: time limit, in minutes of wall time from now on; None for no limit.
    """

    def __init__(self, minutes: float | None = None) -> None:
        self.deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self.signal = ""
        signals = SIGNALS if threading.current_thread() is threading.main_thread() else ()
        self._previous_handlers = {signum: signal.signal(signum, self._handle) for signum in signals}

    def __enter__(self) -> "StopRequest":
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous_handlers.items():
            if handler is not None:  # a handler that was not set from Python cannot be restored from Python
                signal.signal(signum, handler)

    def reason(self) -> str:
        """The signal or the config key that requested the stop; empty if none did."""
        if self.signal:
            return self.signal
        timed_out = self.deadline is not None and time.monotonic() >= self.deadline
        return "train.time_limit" if timed_out else ""

    def _handle(self, signum: int, _: FrameType | None) -> None:
        if signum == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self.signal = signal.Signals(signum).name


class StopFile:
    """A file that requests a stop by being there.

    Args:
        path: the file. It is looked up ten times per second, because a lookup takes a millisecond on some shared file
            systems, which may be as long as a step.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.exists = False
        self._next_lookup = 0.0

    def reason(self) -> str:
        """The path, if the file is there, otherwise an empty text."""
        now = time.monotonic()
        if not self.exists and now >= self._next_lookup:
            self.exists, self._next_lookup = self.path.exists(), now + LOOKUP_SECONDS
        return str(self.path) if self.exists else ""
