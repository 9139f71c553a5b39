"""Flags of the verbs without a config, and the reading of lines."""

import os
import threading
from pathlib import Path

import pytest

from mlm_dist.arguments import read_lines, run_parser
from mlm_dist.data.preparation import SAMPLE_TEXT
from mlm_dist.errors import UserError
from tests.conftest import verb


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        (["--top", "3"], "; did you mean --top_probability?"),
        (["--leng", "3"], "; did you mean --length?"),
        (["--lenght=3"], "; did you mean --length?"),
        (["--zzz"], "--zzz"),
    ],
)
def test_the_nearest_flag_is_named(flags, hint):
    parser = run_parser("generate", "Write.", "--run R")
    parser.add_argument("--length")
    parser.add_argument("--top_probability")
    parser.add_argument("--stop")
    with pytest.raises(UserError) as caught:
        parser.parse_args(["--run", "R", *flags])
    assert str(caught.value).startswith(f"unrecognized arguments: {flags[0]}")
    assert str(caught.value).endswith(hint)


def test_lines_end_only_at_line_feeds(tmp_path):
    (tmp_path / "lines.txt").write_bytes("\ufeffone\r\n\ntwo\u2028still two\n".encode())
    assert read_lines(str(tmp_path / "lines.txt")) == ["one", "", "two\u2028still two"]


def test_the_last_line_needs_no_line_feed(tmp_path):
    (tmp_path / "lines.txt").write_text("one\ntwo")
    assert read_lines(str(tmp_path / "lines.txt")) == ["one", "two"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("fill", "The [MASK]."),
        ("generate", "--length", 1),
        ("evaluate", "--data", SAMPLE_TEXT),
        ("embed", SAMPLE_TEXT, "--out", "vectors.npy"),
        ("plot", "--out", "plots"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_verbs_run_on_the_given_device(arguments: tuple[object, ...], run_dir: Path, tmp_path: Path) -> None:
    name, *rest = arguments
    refused = verb(str(name), "--run", run_dir, *rest, "--device", "cuda", cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.startswith("mlm_dist: error: device: cuda, but torch finds no CUDA device here")
    assert list(tmp_path.iterdir()) == []
    assert verb(str(name), "--run", run_dir, *rest, "--device", "cpu", cwd=tmp_path).returncode == 0
    unknown = verb(str(name), "--run", run_dir, *rest, "--device", "gpu", cwd=tmp_path)
    assert "argument --device: invalid choice: 'gpu'" in unknown.stderr


def test_lines_are_read_from_a_fifo_as_in_process_substitution(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=lambda: fifo.write_text("one\ntwo\n"))
    writer.start()
    assert read_lines(str(fifo)) == ["one", "two"]
    writer.join()


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null"])
def test_lines_are_not_read_from_a_device(path):
    with pytest.raises(UserError, match=f"{path}: it is a device, not a regular file"):
        read_lines(path)
