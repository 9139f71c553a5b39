"""Flags of the verbs that take no config, and what they read from files of lines."""

import pytest

from mlm_dist.command_line import read_lines, run_parser
from mlm_dist.errors import UserError


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


def test_lines_end_at_line_feeds_alone(tmp_path):
    (tmp_path / "lines.txt").write_bytes("\ufeffone\r\n\ntwo\u2028still two\n".encode())
    assert read_lines(str(tmp_path / "lines.txt")) == ["one", "", "two\u2028still two"]


def test_a_last_line_needs_no_end(tmp_path):
    (tmp_path / "lines.txt").write_text("one\ntwo")
    assert read_lines(str(tmp_path / "lines.txt")) == ["one", "two"]
