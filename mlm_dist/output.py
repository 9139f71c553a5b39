"""Printing: warnings on rank 0 only, control characters escaped, write errors of logs ignored."""

import contextlib
import os
import re
import sys
from typing import TextIO

# Characters that a terminal acts on instead of showing them: control characters except line breaks and tabs, which
# include the start of every escape sequence, and characters that change the direction of the text around them.
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

UNITS = ((86400, "days"), (3600, "hours"), (60, "minutes"), (0, "seconds"))


def is_rank_zero() -> bool:
    """Whether this process is rank 0, or runs without torchrun."""
    return os.environ.get("RANK", "0") == "0"


def warn(message: str) -> None:
    """Print a warning on stderr, on rank 0 only."""
    if is_rank_zero():
        print_error(message)


def print_error(message: str) -> None:
    """Print a line on stderr, on any rank."""
    line = message.replace("\n", "\\n")
    print_log(f"mlm_dist: {line}", sys.stderr)


def print_log(line: str, stream: TextIO | None = None) -> None:
    """Print a line of a log, by default on stdout. Write errors (full disk, closed pipe) are ignored."""
    stream = stream or sys.stdout
    with contextlib.suppress(OSError):
        print(encodable(escape_controls(line), stream), file=stream, flush=True)


def print_result(*texts: str, sep: str = "\n") -> None:
    """Print the result of a command on stdout; on a terminal, with control characters escaped."""
    text = sep.join(texts)
    print(encodable(escape_controls(text) if sys.stdout.isatty() else text, sys.stdout), flush=True)


def escape_controls(text: str) -> str:
    """Escape each control character of a text as in JSON, so that JSON stays valid."""
    return CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def encodable(text: str, stream: TextIO) -> str:
    """Escape the characters of a text that the encoding of a stream lacks."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def discard_output() -> None:
    """Discard unflushed output, so that Python does not report it at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def duration_in_words(seconds: float) -> str:
    """A duration in words, in the largest unit of which there are at least two."""
    size, unit = next((size, unit) for size, unit in UNITS if seconds >= 2 * size)
    return f"{seconds / (size or 1):.3g} {unit}"
