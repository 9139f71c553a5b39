"""What verbs read from files of lines."""

from mlm_dist.command_line import read_lines


def test_lines_end_at_line_feeds_alone(tmp_path):
    (tmp_path / "lines.txt").write_bytes("\ufeffone\r\n\ntwo\u2028still two\n".encode())
    assert read_lines(str(tmp_path / "lines.txt")) == ["one", "", "two\u2028still two"]


def test_a_last_line_needs_no_end(tmp_path):
    (tmp_path / "lines.txt").write_text("one\ntwo")
    assert read_lines(str(tmp_path / "lines.txt")) == ["one", "two"]
