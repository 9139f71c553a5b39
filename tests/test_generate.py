"""`python -m mlm_dist.generate`, run from the command line, in a pipe and on a terminal."""

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import unicodedata
from pathlib import Path

import pytest

import mlm_dist
from tests.conftest import REPOSITORY, verb

GAPS = "It was [GAP:20] and then he [GAP:10]."
COLUMNS, LINES = 30, 6
WIDE = "\0"  # the second cell of a wide character
SHADE, HIDE_CURSOR, SHOW_CURSOR = "░", "\x1b[?25l", "\x1b[?25h"


class Terminal:
    """The text on a terminal, including lines that scrolled away. It supports only the expected control codes."""

    def __init__(self) -> None:
        self.rows = [""]
        self.row = self.column = 0

    def lines(self) -> list[str]:
        """The rows without the empty ones at the end, which a taller frame leaves."""
        return "\n".join(self.rows).rstrip("\n").split("\n")

    def show(self, output: str) -> "Terminal":
        for code, motion, erased, character in re.findall(r"(\x1b\[([\d?]*)([A-Za-z]))|([^\x1b])", output):
            if not code:
                self._put(character)
            elif erased == "A":
                top = max(0, len(self.rows) - LINES)
                self.row = max(top, self.row - int(motion or 1))
            elif erased == "K":
                assert motion == "2"
                self.rows[self.row] = ""
            else:
                assert code in (HIDE_CURSOR, SHOW_CURSOR) or erased == "m", repr(code)
        return self

    def _put(self, character: str) -> None:
        if character == "\r":
            self.column = 0
            return
        cells = character + WIDE * (unicodedata.east_asian_width(character) == "W")
        if character == "\n" or self.column + len(cells) > COLUMNS:
            self.row += 1
            self.rows += [""] * (self.row + 1 - len(self.rows))
            if character == "\n":
                return
            self.column = 0
        row = self.rows[self.row].ljust(self.column)
        self.rows[self.row] = row[: self.column] + cells + row[self.column + len(cells) :]
        self.column += len(cells)


def on_a_terminal(*arguments: object, interrupt: bool = False) -> tuple[int, str]:
    """Run the verb on a small terminal. Returns exit code and output. `interrupt`: send Ctrl-C at the first shade."""
    terminal, child_end = pty.openpty()
    fcntl.ioctl(child_end, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "RANK")}
    environment |= {"TERM": "xterm", "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mlm_dist.generate", *map(str, arguments)]
    with subprocess.Popen(command, stdout=child_end, stderr=subprocess.PIPE, env=environment) as process:
        os.close(child_end)
        output = b""
        while block := read(terminal):
            output += block
            if interrupt and SHADE.encode() in output:
                process.send_signal(signal.SIGINT)
                interrupt = False
    os.close(terminal)
    return process.returncode, output.decode()


def read(terminal: int) -> bytes:
    """The next output; empty when no process can write to the terminal any more."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""


def test_the_text_is_printed(run_dir: Path) -> None:
    result = verb("generate", "--run", run_dir, GAPS)
    assert result.returncode == 0, result.stderr
    assert result.stdout == mlm_dist.load(run_dir, "cpu").generate(GAPS)[0].text + "\n"
    assert not result.stderr


def test_flags_equal_the_arguments_of_the_model(run_dir: Path) -> None:
    flags = ["--samples", 3, "--length", 20, "--order", "confidence", "--steps", 4, "--temperature", 0.8]
    flags += ["--top_p", 0.9, "--remask", 0.2, "--seed", 7]
    result = verb("generate", "--run", run_dir, *flags, "The lamp")
    generations = mlm_dist.load(run_dir, "cpu").generate(
        "The lamp",
        samples=3,
        length=20,
        order="confidence",
        steps=4,
        temperature=0.8,
        top_p=0.9,
        remask=0.2,
        seed=7,
    )
    assert result.stdout == "\n---\n".join(generation.text for generation in generations) + "\n"
    assert generations[0].passes == 12


def test_json_is_one_object_per_sample(run_dir: Path) -> None:
    result = verb("generate", "--run", run_dir, "--json", "--samples", 2, GAPS)
    generations = mlm_dist.load(run_dir, "cpu").generate(GAPS, samples=2)
    assert [json.loads(line) for line in result.stdout.splitlines()] == [g._asdict() for g in generations]


def test_watching_changes_nothing_in_a_pipe(run_dir: Path) -> None:
    arguments = ["--run", run_dir, "--samples", 2, GAPS]
    watched = verb("generate", *arguments, "--watch", FORCE_COLOR="1")  # makes rich treat a pipe as a terminal
    assert watched.stdout == verb("generate", *arguments).stdout


@pytest.mark.parametrize(
    ("prompt", "length"),
    [("The lamp", 20), ("The lamp\n\n", 300), ("灯台の灯は、夜になると、ともる。", 20)],
    ids=["fits", "taller than the terminal", "of wide characters"],
)
def test_a_terminal_shows_every_pass_and_finally_only_the_text(run_dir: Path, prompt: str, length: int) -> None:
    # The most likely tokens are letters. Others of this model are control codes.
    arguments = ["--run", run_dir, prompt, "--length", length, "--temperature", 0]
    plain = verb("generate", *arguments).stdout
    code, output = on_a_terminal(*arguments, "--watch")
    assert code == 0
    frames = re.split(r"\r\x1b\[2K(?:\x1b\[1A\x1b\[2K)*", output)
    assert len(frames) >= length
    assert len(set(frames)) > length / 2
    assert SHADE in frames[0]
    assert SHADE not in plain
    assert Terminal().show(output).lines() == Terminal().show(plain.replace("\n", "\r\n")).lines()
    assert output.rindex(SHOW_CURSOR) > output.rindex(HIDE_CURSOR)


def test_an_interrupt_leaves_the_terminal_as_it_was(run_dir: Path) -> None:
    code, output = on_a_terminal("--run", run_dir, "--length", 3000, "--watch", interrupt=True)
    assert code == 130
    assert set(Terminal().show(output).rows) == {""}
    assert output.rindex(SHOW_CURSOR) > output.rindex(HIDE_CURSOR)


def test_without_watch_a_terminal_gets_plain_text(run_dir: Path) -> None:
    code, output = on_a_terminal("--run", run_dir, GAPS)
    assert code == 0
    assert "\x1b[" not in output
