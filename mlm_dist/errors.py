"""What a person is told when something they gave is wrong, and how a verb ends."""

import contextlib
import errno
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from typing import NoReturn, TextIO

SECONDS_FOR_RANK_0_TO_SPEAK = 20.0

# What is said of a path that a person gave: too long, locked, below a file, on a read-only disk, no regular file.
PATH_ERRORS = {
    errno.ENAMETOOLONG,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.ELOOP,
    errno.EROFS,
    errno.EISDIR,
    errno.ENXIO,  # it is a socket, or what else `mlm_dist.files.open_regular` refuses
    errno.EFBIG,
}


# What has a terminal do something else than show a character: control characters but line breaks and tabs, among them
# the beginning of every escape sequence, and characters that turn the direction of the text around them.
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


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
    line = message.replace("\n", "\\n")
    tell(f"mlm_dist: {line}", sys.stderr)


def tell(line: str, stream: TextIO | None = None) -> None:
    """Print a line, by default on stdout. A log that takes no more (its disk is full, its reader gone) ends no run."""
    stream = stream or sys.stdout
    with contextlib.suppress(OSError):
        print(encodable(without_controls(line), stream), file=stream, flush=True)


def show(*texts: str, sep: str = "\n") -> None:
    """Print what a verb was asked for on stdout; on a terminal, without what would have that do something else."""
    text = sep.join(texts)
    print(encodable(without_controls(text) if sys.stdout.isatty() else text, sys.stdout), flush=True)


def without_controls(text: str) -> str:
    """A text with an escape in the place of each control character, as JSON writes it, so that JSON stays JSON."""
    return CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def encodable(text: str, stream: TextIO) -> str:
    """A text with an escape for each character that a stream's encoding does not have."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def let_go_of_output() -> None:
    """Drop what stdout and stderr have not taken, about which Python would complain at its exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def speaks() -> bool:
    """Whether this process is the one of its job that prints: rank 0, or a process outside torchrun."""
    return os.environ.get("RANK", "0") == "0"


def run_verb(main: Callable[[list[str]], None], prints_only_a_log: bool = False) -> None:
    """Run a verb's `main` on the command line and leave with the exit code that the README promises.

    Called from Python, `main` returns; everything that is for a program that ends with the verb is done here. Under
    torchrun that is to end without taking Python down (see `Processes.leave`).

    Under torchrun a mistake in the config is found by all ranks at once. Rank 0 prints it; the others wait for
    torchrun to end them, since one that left first would have torchrun kill rank 0 before it had spoken. If they are
    still there after that, the mistake was found here alone, and they say it.

    Args:
        main: takes the command line without the program's name.
        prints_only_a_log: what it prints can get lost (the disk is full, its reader gone) without making it a failure.
    """
    try:
        main(sys.argv[1:])
        if prints_only_a_log:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
                signal.signal(number, signal.SIG_IGN)  # all is done; taking torch down takes a while
            let_go_of_output()
        sys.stdout.flush()
    except UserError as error:
        refuse(str(error), error.exit_code)
    except KeyboardInterrupt:
        warn("interrupted")
        let_go_of_output()
        os._exit(130)  # Python's own way out aborts while a thread is in compiled code, training a vocabulary
    except BrokenPipeError:
        let_go_of_output()  # its reader (`| head`) has gone
        sys.exit(141)
    except OSError as error:
        if error.errno == errno.ENOSPC and error.filename is None:
            refuse(f"where the output goes: {error.strerror}", RunError.exit_code)
        if error.errno not in PATH_ERRORS or error.filename is None:
            raise
        refuse(f"{error.filename}: {error.strerror}")
    if "RANK" in os.environ:
        let_go_of_output()
        os._exit(0)


def refuse(complaint: str, exit_code: int = 2) -> NoReturn:
    """Print a complaint as one line and leave."""
    if not speaks():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # by which torchrun ends it; training may have another use for it
        time.sleep(SECONDS_FOR_RANK_0_TO_SPEAK)
    say(f"error: {' '.join(complaint.split())}")
    let_go_of_output()
    sys.exit(exit_code)
