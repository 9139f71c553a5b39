"""Command lines: parsers, input files, and exit codes. Every user error is one line."""

import argparse
import difflib
import errno
import os
import re
import signal
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from mlm_dist.errors import RunError, UserError
from mlm_dist.files import read_bytes
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


def run_verb(main: Callable[[list[str]], object], prints_only_a_log: bool = False) -> None:
    """Run the `main` of a verb on the command line and exit with the codes in docs/distributed.md.

    A `UserError`, an error of a path and a full disk are printed as one line. Other exceptions are bugs and keep their
    traceback. Ctrl-C, and success under torchrun, skip Python's own finalization (see `Processes.close`). Otherwise,
    this returns after success.

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


class OneLineParser(ArgumentParser):
    """An argument parser with one-line errors. It refuses abbreviated flags and arguments that are not UTF-8."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse arguments that are not UTF-8 before they are parsed."""
        for argument in args or []:
            try:
                argument.encode()
            except UnicodeEncodeError as error:
                raise UserError(f"an argument is not UTF-8: {argument.encode(errors='replace').decode()}") from error
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise a UserError instead of printing the usage; for an unknown flag, with the nearest known flag."""
        if number := re.fullmatch(r"argument (\S+): invalid (int|float) value: '(.*)'", message, re.DOTALL):
            kind = {"int": "a whole number", "float": "a number"}[number[2]]
            raise UserError(f"{number[1]} is {number[3]}: it must be {kind}")
        if re.match("unrecognized arguments: [^-]", message):
            raise UserError(f"{message}; put quotes around a text with spaces")
        unknown = re.search(r"unrecognized arguments: (--\w+)", message)
        if not unknown:
            raise UserError(message)
        completions = [flag for flag in self._option_string_actions if flag.startswith(unknown[1])]
        near = completions or difflib.get_close_matches(unknown[1], self._option_string_actions, n=1)
        raise UserError(f"{message}; did you mean {near[0]}?" if near else message)


def run_parser(verb: str, description: str, example: str) -> OneLineParser:
    """The parser of a verb that takes a run, with `--run`.

    `--run_dir` is an alias: torchrun on Python 3.11 refuses `--run` after `-m mlm_dist.<verb>`, because it parses it as
    an abbreviation of one of its own flags.

    Args:
        verb: the name of the verb.
        description: the description in --help.
        example: the arguments of the example in --help.
    """
    parser = OneLineParser(
        prog=f"python -m mlm_dist.{verb}",
        description=description,
        epilog=f"Example: python -m mlm_dist.{verb} {example}",
    )
    parser.add_argument(
        "--run", "--run_dir", type=named_path, required=True, metavar="RUN_DIR", help="run directory of `train`"
    )
    return parser


def add_device(parser: ArgumentParser) -> None:
    """Add `--device`."""
    parser.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda"],
        default="auto",
        help="device to compute on; auto: a GPU if there is one, otherwise the CPU (default: %(default)s)",
    )


def named_path(text: str) -> Path:
    """Parse a path. An empty path, from an unset shell variable, is an error."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    return Path(text)


def read_stream(path: Path) -> bytes:
    """The content of a regular file, a FIFO or a terminal.

    Raises:
        OSError: it cannot be read, or is anything else, such as a device that never ends.
    """
    if path.is_fifo():
        return path.read_bytes()
    if path.is_char_device():
        with path.open("rb") as file:
            if file.isatty():
                return file.read()
    return read_bytes(path)


def read_lines(file: str) -> list[str]:
    """The lines of a UTF-8 file, or of standard input for `-`.

    It may be a FIFO or a terminal, such as `/dev/stdin` or the `<(command)` of a shell.

    Raises:
        UserError: it cannot be read, is not UTF-8, or is empty.
    """
    name = "standard input" if file == "-" else file
    try:
        content = sys.stdin.buffer.read() if file == "-" else read_stream(Path(file))
        lines = content.decode("utf-8-sig").split("\n")
    except OSError as error:
        raise UserError(f"{name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not UTF-8 at byte {error.start} ({error.reason}): convert it to UTF-8") from error
    if not lines[-1]:
        lines.pop()
    if not lines:
        raise UserError(f"{name}: it is empty")
    return [line.removesuffix("\r") for line in lines]
