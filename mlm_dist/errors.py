"""What a person is told when something they gave is wrong, and how a verb ends."""

import errno
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import NoReturn

SECONDS_FOR_RANK_0_TO_SPEAK = 20.0

# What the system says of a path that a person gave: too long, locked, below a file, on a read-only disk.
PATH_ERRORS = {
    errno.ENAMETOOLONG,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.ELOOP,
    errno.EROFS,
}


class UserError(Exception):
    """Something the person gave is wrong: one line that names it and says what to do.

    Verbs end with exit code 2 on it and print the line alone; every other exception is a fault of ours and
    keeps its traceback.
    """

    exit_code = 2


class RunError(UserError):
    """What ends a run though nothing that was given is wrong: a full disk, a loss that is no number, a lost process.

    One line too, but exit code 1.
    """

    exit_code = 1


def warn(message: str) -> None:
    """Print one line on stderr, on rank 0 only."""
    if speaks():
        say(message)


def say(message: str) -> None:
    """Print one line on stderr."""
    print(f"mlm_dist: {message}", file=sys.stderr, flush=True)


def speaks() -> bool:
    """Whether this process is the one of its job that prints: rank 0, or a process outside torchrun."""
    return os.environ.get("RANK", "0") == "0"


def run_verb(main: Callable[[list[str]], None]) -> None:
    """Run a verb's `main` on the command line and leave with the exit code that the README promises.

    Under torchrun a mistake in the config is found by all ranks at once. Rank 0 prints it; the others wait for
    torchrun to end them, since one that left first would have torchrun kill rank 0 before it had spoken. If they are
    still there after that, the mistake was found here alone, and they say it.
    """
    try:
        main(sys.argv[1:])
    except UserError as error:
        refuse(str(error), error.exit_code)
    except KeyboardInterrupt:
        if speaks():
            say("interrupted")
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output (`| head`) has gone. Python would complain once more while it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.errno not in PATH_ERRORS or error.filename is None:
            raise
        refuse(f"{error.filename}: {error.strerror}")


def refuse(complaint: str, exit_code: int = 2) -> NoReturn:
    """Print a complaint as one line and leave."""
    if not speaks():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # by which torchrun ends it; training may have another use for it
        time.sleep(SECONDS_FOR_RANK_0_TO_SPEAK)
    say(f"error: {' '.join(complaint.split())}")
    sys.exit(exit_code)
