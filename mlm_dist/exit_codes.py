"""How a verb is called, runs and ends: its command, exit codes, and one line for every user error."""

import errno
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from mlm_dist.errors import RunError, UserError
from mlm_dist.output import discard_output, is_rank_zero, print_error, warn

SECONDS_FOR_RANK_0_TO_PRINT = 20.0

# Errors caused by a path from the user: too long, no permission, below a file, a read-only disk, not a regular file.
PATH_ERRORS = {
    errno.ENAMETOOLONG,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.ELOOP,
    errno.EROFS,
    errno.EISDIR,
    errno.ENXIO,  # a socket, or another kind that `mlm_dist.files.open_regular` refuses
    errno.EFBIG,
}


def command_of(verb: str) -> str:
    """The command that runs a verb, by the name that this program was started with."""
    return f"mlm-dist {verb}" if Path(sys.argv[0]).stem in ("mlm-dist", "__main__") else f"python -m mlm_dist.{verb}"


def run_verb(main: Callable[[list[str]], object], prints_only_a_log: bool = False) -> None:
    """Run the `main` of a verb on the command line and exit with the codes in docs/distributed.md.

    A `UserError`, an error of a path and a full disk are printed as one line. Other exceptions are bugs and keep their
    traceback. After Ctrl-C, and after success under torchrun, Python's own finalization is skipped (see
    `Processes.close`). After success without torchrun, this returns.

    Under torchrun, an error in the config occurs on all ranks at the same time, and rank 0 prints it. The other ranks
    wait for torchrun to end them: if one of them exited first, torchrun would kill rank 0 before it had printed. A rank
    that is still alive after the wait prints the error, since it occurred on this rank only.

    Args:
        main: takes the command line without the program's name.
        prints_only_a_log: losing its output (full disk, closed pipe) is not a failure.
    """
    try:
        main(sys.argv[1:])
        if prints_only_a_log:
            for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
                signal.signal(signum, signal.SIG_IGN)  # the work is done, and finalization takes a while
            discard_output()
        sys.stdout.flush()
    except UserError as error:
        exit_with(*map(str, error.args), exit_code=error.exit_code)
    except KeyboardInterrupt:
        warn("interrupted")
        discard_output()
        os._exit(130)  # Python's finalization aborts while a thread is in compiled code, such as BPE training
    except BrokenPipeError:
        discard_output()  # its reader (`| head`) is gone
        sys.exit(141)
    except OSError as error:
        if error.errno == errno.ENOSPC and error.filename is None:
            exit_with(f"the output cannot be written: {error.strerror}", exit_code=RunError.exit_code)
        if error.errno not in PATH_ERRORS or error.filename is None:
            raise
        exit_with(f"{error.filename}: {error.strerror}")
    if "RANK" in os.environ:
        discard_output()
        os._exit(0)


def exit_with(*messages: str, exit_code: int = 2) -> NoReturn:
    """Print each message as one line and exit. Ranks other than 0 wait first (see `run_verb`)."""
    if not is_rank_zero():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # torchrun sends it to end this rank, but training may handle it
        time.sleep(SECONDS_FOR_RANK_0_TO_PRINT)
    for message in messages:
        print_error(f"error: {' '.join(message.split())}")
    discard_output()
    sys.exit(exit_code)
