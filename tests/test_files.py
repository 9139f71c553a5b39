import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlm_dist.errors import UserError
from mlm_dist.files import (
    cache_folder,
    format_size,
    new_folder,
    open_regular,
    parse_json,
    read_bytes,
    read_json,
    read_text,
    replacing,
)


def test_a_file_is_replaced_atomically(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    with replacing(path) as file:
        file.write(b"after")
        assert path.read_text() == "before"
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(ZeroDivisionError), replacing(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_replaced_file_has_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    with replacing(tmp_path / "file") as file:
        file.write(b"after")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_folder_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    with new_folder(tmp_path / "deep" / "out") as folder:
        (folder / "file").write_bytes(b"content")
        assert not (tmp_path / "deep" / "out").exists()
        assert folder.parent == tmp_path / "deep"  # on the same file system, so that it can be renamed
    assert (tmp_path / "deep" / "out" / "file").read_bytes() == b"content"


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError, RuntimeError])
def test_nothing_remains_of_a_folder_that_failed(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), new_folder(tmp_path / "out") as folder:
        (folder / "file").write_bytes(b"content")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_the_error_of_another_file_does_not_name_the_folder(tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / "missing"
    with pytest.raises(UserError, match=rf"^{other}: No such file"), new_folder(tmp_path / "here" / "out"):
        other.read_bytes()


def test_two_processes_may_replace_a_shared_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with replacing(path, shared=True) as one:
        with replacing(path, shared=True) as other:
            one.write(b"one")
            other.write(b"other")
        assert path.read_bytes() == b"other"
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_second_writer_that_fails_does_not_disturb_the_first(tmp_path: Path) -> None:
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
def test_a_size_is_formatted_in_a_suitable_unit(size: int, words: str) -> None:
    assert format_size(size) == words


@pytest.fixture
def irregular(tmp_path: Path) -> Iterator[dict[str, Path]]:
    """One path of each kind that is not a regular file, including a link to a FIFO."""
    paths = {name: tmp_path / name for name in ("FIFO", "link", "socket")} | {"device": Path("/dev/zero")}
    os.mkfifo(paths["FIFO"])
    paths["link"].symlink_to(paths["FIFO"])
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(paths["socket"]))
        yield paths


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["FIFO", "link", "socket", "device"])
def test_opening_an_irregular_file_fails_without_blocking(irregular: dict[str, Path], kind: str) -> None:
    with pytest.raises(OSError, match=f"it is a {kind.replace('link', 'FIFO')}, not a regular file") as caught:
        open_regular(irregular[kind])
    assert caught.value.filename == str(irregular[kind])


@pytest.mark.timeout(20)
def test_a_file_that_becomes_a_fifo_while_it_is_opened_does_not_block(
    irregular: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    before = (tmp_path / "file").stat()
    monkeypatch.setattr(Path, "stat", lambda _: before)
    with pytest.raises(OSError, match="it is a FIFO, not a regular file"):
        open_regular(irregular["FIFO"])


def test_opening_a_folder_fails_and_leaves_no_handle_open(tmp_path: Path) -> None:
    before = sum(1 for _ in Path("/proc/self/fd").iterdir())
    for _ in range(20):
        with pytest.raises(IsADirectoryError):
            open_regular(tmp_path)
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) == before


def test_a_file_larger_than_the_limit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc\xff")
    assert read_bytes(path) == read_bytes(path, largest=4) == b"abc\xff"
    assert read_text(path, errors="replace") == "abc\ufffd"
    with pytest.raises(OSError, match="it is larger than 3 bytes"):
        read_bytes(path, largest=3)
    with pytest.raises(UnicodeDecodeError):
        read_text(path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, "{", "", "\x00", "{'a': 1}"])
def test_invalid_json_is_a_value_error_without_advice_about_python(tmp_path: Path, text: str) -> None:
    (tmp_path / "file").write_text(text)
    for read in (lambda: parse_json(text), lambda: read_json(tmp_path / "file")):
        with pytest.raises(ValueError, match=r".") as caught:
            read()
        assert "sys." not in str(caught.value)


@pytest.mark.parametrize("value", [None, ""])
def test_the_default_cache_folder_is_below_home(
    value: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if value is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert cache_folder() == tmp_path / ".cache" / "mlm_dist"


def test_the_environment_sets_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "mlm_dist"
