"""Command lines: parsers, the files that they name, and how a command exits. Every user error is one line."""

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

# Errors of a path that the user gave: too long, no permission, below a file, a read-only disk, not a regular file.
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
    """Run the `main` of a verb on the command line and exit with the code that docs/distributed.md promises.

    Called from Python, `main` returns; everything for a program that ends with the verb is done here. Under torchrun,
    this includes ending without Python's own finalization (see `Processes.close`).

    Under torchrun, all ranks find an error in the config at the same time. Rank 0 prints it. The others wait for
    torchrun to end them, because torchrun would kill rank 0 before it had printed, if another rank exited first. If
    they are still alive after that, the error occurred on this rank only, and they print it.

    Args:
        main: takes the command line without the program's name.
        prints_only_a_log: its output may get lost (full disk, closed pipe) without making it a failure.
    """
    try:
        main(sys.argv[1:])
        if prints_only_a_log:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
                signal.signal(number, signal.SIG_IGN)  # everything is done; finalization takes a while
            discard_output()
        sys.stdout.flush()
    except UserError as error:
        exit_with(*map(str, error.args), exit_code=error.exit_code)
    except KeyboardInterrupt:
        warn("interrupted")
        discard_output()
        os._exit(130)  # Python's own finalization aborts while a thread is in compiled code, training a vocabulary
    except BrokenPipeError:
        discard_output()  # its reader (`| head`) is gone
        sys.exit(141)
    except OSError as error:
        if error.errno == errno.ENOSPC and error.filename is None:
            exit_with(f"where the output goes: {error.strerror}", exit_code=RunError.exit_code)
        if error.errno not in PATH_ERRORS or error.filename is None:
            raise
        exit_with(f"{error.filename}: {error.strerror}")
    if "RANK" in os.environ:
        discard_output()
        os._exit(0)


def exit_with(*messages: str, exit_code: int = 2) -> NoReturn:
    """Print each error as one line and exit."""
    if not is_rank_zero():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # from torchrun, which ends this rank; training may handle it
        time.sleep(SECONDS_FOR_RANK_0_TO_PRINT)
    for message in messages:
        print_error(f"error: {' '.join(message.split())}")
    discard_output()
    sys.exit(exit_code)


class OneLineParser(ArgumentParser):
    """An argument parser with one-line errors, without abbreviated flags and arguments that are not UTF-8."""

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
        unknown = re.search(r"unrecognized arguments: (--\w+)", message)
        if not unknown:
            raise UserError(message)
        begun = [flag for flag in self._option_string_actions if flag.startswith(unknown[1])]
        near = begun or difflib.get_close_matches(unknown[1], self._option_string_actions, n=1)
        raise UserError(f"{message}; did you mean {near[0]}?" if near else message)


def run_parser(verb: str, description: str, example: str) -> OneLineParser:
    """The parser of a verb that takes a run, with `--run`.

    `--run_dir` is the same: torchrun on Python 3.11 refuses `--run` after `-m mlm_dist.<verb>`, because it takes it for
    an abbreviation of a flag of its own.

    Args:
        verb: its name.
        description: what it does.
        example: arguments, for --help.
    """
    parser = OneLineParser(
        prog=f"python -m mlm_dist.{verb}",
        description=description,
        epilog=f"Example: python -m mlm_dist.{verb} {example}",
    )
    parser.add_argument(
        "--run", "--run_dir", type=named_path, required=True, metavar="RUN_DIR", help="folder of a training run"
    )
    return parser


def add_device(parser: ArgumentParser) -> None:
    """Add `--device`."""
    parser.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda"],
        default="auto",
        help="where to compute; auto: on a GPU where there is one, else on the CPU (default: %(default)s)",
    )


def named_path(text: str) -> Path:
    """Parse a path. An empty path, from an unset shell variable, is an error."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    return Path(text)


def read_stream(path: Path) -> bytes:
    """The content of a regular file, a FIFO or a terminal.

    Raises:
        OSError: it cannot be read, or is something else: other devices may never end.
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
        UserError: it cannot be read, or is not UTF-8.
    """
    name = "standard input" if file == "-" else file
    try:
        content = sys.stdin.buffer.read() if file == "-" else read_stream(Path(file))
        lines = content.decode("utf-8-sig").split("\n")
    except OSError as error:
        raise UserError(f"{name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not UTF-8 at byte {error.start} ({error.reason})") from error
    if not lines[-1]:
        lines.pop()
    if not lines:
        raise UserError(f"{name}: it holds no line")
    return [line.removesuffix("\r") for line in lines]
