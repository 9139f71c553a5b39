"""The arguments of the verbs: parsers, and the lines of text that a verb reads."""

import argparse
import difflib
import functools
import re
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from mlm_dist.errors import UserError
from mlm_dist.exit_codes import command_of
from mlm_dist.files import read_bytes

ALL_STEPS = "all"
"""The value of `--step` for all checkpoints of a run, one after the other."""


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


def run_parser(verb: str, description: str, example: str, has_all_steps: bool = False) -> OneLineParser:
    """The parser of a verb that takes a run, with `--run`.

    `--run_dir` is an alias: torchrun on Python 3.11 refuses `--run` after `-m mlm_dist.<verb>`, because it parses it as
    an abbreviation of one of its own flags.

    Args:
        verb: the name of the verb.
        description: the description in --help.
        example: the arguments of the example in --help.
        has_all_steps: whether the verb takes `--step all`.
    """
    parser = OneLineParser(
        prog=command_of(verb),
        description=description,
        epilog=f"Example: {command_of(verb)} {example}",
    )
    add_run(parser)
    add_step(parser, has_all_steps)
    return parser


def add_run(parser: ArgumentParser) -> None:
    """Add `--run`."""
    parser.add_argument(
        "--run", "--run_dir", type=named_path, required=True, metavar="RUN_DIR", help="run directory of `train`"
    )


def add_step(parser: ArgumentParser, has_all_steps: bool = False) -> None:
    """Add `--step`."""
    words = ("best", "newest", *([ALL_STEPS] if has_all_steps else []))
    parser.add_argument(
        "--step",
        type=functools.partial(checkpoint_step, words=words),
        metavar="K",
        help="load the checkpoint or milestone of step K, that of the step with the lowest validation loss (best), or "
        f"the newest checkpoint{'; all: one after the other ' if has_all_steps else ' '}"
        "(default: the final parameters of a finished run, otherwise the newest checkpoint)",
    )


def checkpoint_step(text: str, words: Sequence[str]) -> int | str:
    """Parse `--step`: a number, or one of some words."""
    if text in words:
        return text
    if not (text.isascii() and text.isdigit()):
        listed = f"{', '.join(words[:-1])} or {words[-1]}"
        raise argparse.ArgumentTypeError(f"it is {text}: give the step of a checkpoint, {listed}")
    return int(text)


def add_device(parser: ArgumentParser) -> None:
    """Add `--device`."""
    parser.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda"],
        default="auto",
        help="device to compute on; auto: a GPU if there is one, otherwise the CPU (default: %(default)s)",
    )


def add_new_folder(parser: ArgumentParser) -> None:
    """Add `--out`, for a folder that must not exist yet."""
    parser.add_argument(
        "--out", type=named_path, required=True, metavar="DIR", help="folder to create; must not exist yet"
    )


def named_path(text: str) -> Path:
    """Parse a path. An empty path, from an unset shell variable, is an error."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    return Path(text)


def mirror(text: str) -> str:
    """Parse the URL of a mirror."""
    if not text.startswith(("https://", "http://")):
        raise argparse.ArgumentTypeError(f"'{text}' is not a URL: it must start with https:// or http://")
    return text


def book_number(text: str) -> int:
    """Parse the Project Gutenberg number of a book."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(
            f"'{text}' is not a book number: the number of https://www.gutenberg.org/ebooks/1342 is 1342"
        )
    return int(text)


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
