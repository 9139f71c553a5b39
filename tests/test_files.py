from pathlib import Path

import pytest

from mlm_dist.errors import UserError
from mlm_dist.files import format_size, new_folder, replacing


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    with replacing(path) as file:
        file.write(b"after")
        assert path.read_text() == "before"
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(ZeroDivisionError), replacing(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_was_replaced_can_be_read_by_whom_other_files_can(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    with replacing(tmp_path / "file") as file:
        file.write(b"after")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_folder_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    with new_folder(tmp_path / "deep" / "out") as folder:
        (folder / "file").write_bytes(b"content")
        assert not (tmp_path / "deep" / "out").exists()
        assert folder.parent == tmp_path / "deep"  # on the same file system, so that it can be renamed
    assert (tmp_path / "deep" / "out" / "file").read_bytes() == b"content"


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError, RuntimeError])
def test_nothing_is_left_of_a_folder_that_failed(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), new_folder(tmp_path / "out") as folder:
        (folder / "file").write_bytes(b"content")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_two_processes_may_replace_a_file_that_they_share(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with replacing(path, shared=True) as one:
        with replacing(path, shared=True) as other:
            one.write(b"one")
            other.write(b"other")
        assert path.read_bytes() == b"other"
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]


def test_who_comes_second_leaves_the_folder_of_the_first_alone(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out") as first:
        (first / "file").write_bytes(b"content")
        with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "out"):
            raise ZeroDivisionError
    assert (tmp_path / "out" / "file").read_bytes() == b"content"


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (123_456, "123.5 kB"),
        (190_000_000, "190.0 MB"),
        (2_400_000_000_000, "2400.0 GB"),
    ],
)
def test_a_size_is_told_in_the_unit_that_suits_it(size: int, words: str) -> None:
    assert format_size(size) == words
