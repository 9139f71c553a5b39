"""Stop requests, by signal or by time limit.

Nothing here imports torch, because a signal may arrive during the seconds that the import takes.
"""

import signal
import threading
import time
from types import FrameType, TracebackType

# torchrun forwards TERM and INT. The user chooses the signal of SLURM's warnings, usually USR1.
SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Whether this process was requested to stop. A second Ctrl-C raises KeyboardInterrupt instead.

    The signal handlers only set a flag, because a signal may interrupt anything. The training checks it between two
    steps. As a context manager, it restores the previous handlers at the end of the block. Python sets handlers in the
    main thread only; in another thread, there is only the time limit.

    Args:
        minutes: time limit, in minutes of wall time from now on; None for no limit.
    """

    def __init__(self, minutes: float | None = None) -> None:
        self.deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self.signal = ""
        heard = SIGNALS if threading.current_thread() is threading.main_thread() else ()
        self._handlers_before = {number: signal.signal(number, self._take_note) for number in heard}

    def __enter__(self) -> "StopRequest":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers_before.items():
            if handler is not None:  # a handler that was not set from Python cannot be restored from Python
                signal.signal(number, handler)

    def reason(self) -> str:
        """The signal or the key that requested it; empty if nothing did."""
        if self.signal:
            return self.signal
        timed_out = self.deadline is not None and time.monotonic() >= self.deadline
        return "train.time_limit" if timed_out else ""

    def _take_note(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self.signal = signal.Signals(number).name
