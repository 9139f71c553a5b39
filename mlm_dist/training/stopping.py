"""Being asked to stop by a signal or by the clock.

Nothing here imports torch, whose import takes seconds in which a signal may come.
"""

import signal
import threading
import time
from types import FrameType, TracebackType

# torchrun passes on TERM and INT; SLURM's warnings are what its users choose, USR1 by custom.
SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Whether this process has been asked to stop. A second Ctrl-C does not ask: it raises KeyboardInterrupt.

    The handlers do nothing but take a note, since a signal may come in the middle of anything; what is to be done is
    done between two steps. As a context manager it puts the handlers of before back at the end of the block. Python
    lets only the main thread set handlers; made in another thread, a request is answered by the clock alone.

    Args:
        minutes: of wall time from now on, after which the clock asks; None for never.
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
            if handler is not None:  # one that was not set from Python cannot be set from Python
                signal.signal(number, handler)

    def reason(self) -> str:
        """Who or what has asked; empty if nobody has."""
        if self.signal:
            return self.signal
        timed_out = self.deadline is not None and time.monotonic() >= self.deadline
        return "train.time_limit" if timed_out else ""

    def _take_note(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self.signal = signal.Signals(number).name
