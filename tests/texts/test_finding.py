"""Finding the files that texts are read from."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mlm_dist.errors import UserError
from mlm_dist.texts.finding import TextFile, find_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """texts/{a.txt, b.txt, b/c.txt, b/d/e.txt, notes.rst}, 100 bytes each."""
    for name in ("b.txt", "a.txt", "b/d/e.txt", "b/c.txt", "notes.rst"):
        path = tmp_path / "texts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"0123456789" * 10)
    return tmp_path / "texts"


def names(files: list[TextFile]) -> list[str]:
    return [file.name for file in files]


def test_the_txt_files_of_a_folder_are_found_in_a_fixed_order(folder: Path) -> None:
    assert names(find_files([folder])) == ["a.txt", "b/c.txt", "b/d/e.txt", "b.txt"]


def test_given_files_may_have_any_name_and_keep_their_order(folder: Path) -> None:
    found = find_files([folder / "notes.rst", folder / "b", folder / "a.txt"])
    assert names(found) == ["notes.rst", "c.txt", "d/e.txt", "a.txt"]


def test_a_file_given_twice_is_read_once(folder: Path) -> None:
    found = find_files([folder / "a.txt", folder, folder / "b" / ".." / "a.txt"])
    assert names(found) == ["a.txt", "b/c.txt", "b/d/e.txt", "b.txt"]


def test_without_val_paths_there_is_no_validation_text(folder: Path) -> None:
    assert [(f.size, f.is_validation) for f in find_files([folder])] == [(100, False)] * 4


def test_val_paths_are_validation_text_as_a_whole(folder: Path) -> None:
    found = find_files([folder], [folder / "b"])
    assert [f.name for f in found if f.is_validation] == ["b/c.txt", "b/d/e.txt"]
    assert [f.name for f in found if not f.is_validation] == ["a.txt", "b.txt"]


def test_val_paths_need_not_be_among_the_other_paths(folder: Path) -> None:
    found = find_files([folder / "b"], [folder / "a.txt"])
    assert {f.name: f.is_validation for f in found} == {"c.txt": False, "d/e.txt": False, "a.txt": True}


def test_an_empty_file_in_a_folder_is_skipped_with_a_warning(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "a.txt").write_bytes(b"")
    assert names(find_files([folder])) == ["b/c.txt", "b/d/e.txt", "b.txt"]
    assert f"skipped {folder / 'a.txt'}: it is empty" in capsys.readouterr().err


def test_skipped_files_of_a_folder_are_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("b/more.rst", "LICENSE", ".DS_Store", ".git/config", "b/page.html"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"text")
    find_files([folder])
    message = f"mlm_dist: {folder}: skipped 4 files (2 .rst, 1 without a suffix, 1 .html)\n"
    assert capsys.readouterr().err == message
    find_files([folder / "b" / "d"])
    assert capsys.readouterr().err == ""


def no_such_path(folder: Path) -> list[Path]:
    return [folder, folder / "missing.txt"]


def an_empty_file(folder: Path) -> list[Path]:
    (folder / "empty.txt").write_bytes(b"")
    return [folder, folder / "empty.txt"]


def a_folder_without_texts(folder: Path) -> list[Path]:
    (folder / "none").mkdir()
    (folder / "none" / "notes.rst").write_bytes(b"text")
    return [folder / "none"]


def a_file_name_that_is_too_long(folder: Path) -> list[Path]:
    return [folder / ("x" * 300)]


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (no_such_path, r"missing\.txt: there is no such file or folder"),
        (an_empty_file, r"empty\.txt: the file is empty"),
        (a_folder_without_texts, r"no text in .*none"),
        (a_file_name_that_is_too_long, r"xxx"),
    ],
)
def test_paths_without_text_are_a_user_error(folder: Path, paths: Callable[[Path], list[Path]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_files(paths(folder))
