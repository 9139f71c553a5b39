"""A record that is broken is named with its line, and refused or counted."""

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlm_dist.errors import UserError
from mlm_dist.texts.document_list import DocumentList, find_documents
from mlm_dist.texts.reading import Reading

GOOD = {"jsonl": '{"text": "good"}', "csv": "1,good", "tsv": "1\tgood"}
HEADERS = {"jsonl": '{"text": "good"}', "csv": "id,text", "tsv": "id\ttext"}

BROKEN = [
    ("jsonl", b"{", "line 2: it is not JSON at column 2"),
    ("jsonl", b'{"text": "a"} {"text": "b"}', "line 2: it is not JSON at column 15"),
    ("jsonl", b'["text"]', "line 2: a record must be an object, not a list"),
    ("jsonl", b'{"body": "a"}', "line 2: it has no 'text'"),
    ("jsonl", b'{"text": 7}', "line 2: 'text' is a number, not text"),
    ("jsonl", b'{"text": {"a": "b"}}', "line 2: 'text' is an object, not text"),
    ("jsonl", b'{"text": "caf\xe9"}', "line 2: not utf-8: the byte 0xe9 at character 3 of its text"),
    ("jsonl", b'{"text": "half \\ud83d"}', "line 2: the text has half of a character (U+D83D at character 5)"),
    ("jsonl", b"[" * 3900, "line 2: it is nested too deeply"),
    ("jsonl", b'{"text": "' + b"long " * 1000 + b'"}', "line 2: it has more than 4,000 characters"),
    ("csv", b"2,one,more", "line 2: it has 3 fields instead of 2"),
    ("csv", b"lonely", "line 2: it has 1 fields instead of 2"),
    ("csv", b'2,"a" b', "line 2: not a row of a table"),
    ("csv", b"2,caf\xe9", "line 2: not utf-8: the byte 0xe9 at character 3 of its text"),
    ("csv", b"2," + b"long " * 1000, "line 2: it has more than 4,000 characters"),
    ("tsv", b"2\tone\tmore", "line 2: it has 3 fields instead of 2"),
]


@pytest.fixture(autouse=True)
def small_records(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Records of a few thousand characters are too large, and files are read in blocks smaller than that."""
    monkeypatch.setattr("mlm_dist.texts.records.LARGEST_RECORD", 4000)
    monkeypatch.setattr("mlm_dist.texts.reading.BLOCK_BYTES", 500)
    limit = csv.field_size_limit()
    yield
    csv.field_size_limit(limit)  # which is the same for the whole process


def texts(documents: DocumentList) -> list[str]:
    return [piece.text for _, piece in documents.pieces()]


@pytest.mark.parametrize(("suffix", "line", "message"), BROKEN)
def test_a_broken_record_is_refused_or_counted(
    suffix: str, line: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"a.{suffix}"
    good = GOOD[suffix].encode()
    path.write_bytes(b"\n".join([HEADERS[suffix].encode(), line, good, line, good, b""]))
    with pytest.raises(UserError) as caught:
        find_documents([path])
    assert str(caught.value).startswith(f"{path} {message}")
    assert "--skip_broken" in str(caught.value)
    documents = find_documents([path], reading=Reading(skip_broken=True))
    assert texts(documents) == ["good"] * (3 if suffix == "jsonl" else 2)
    [warning] = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"mlm_dist: skipped 2 broken records, the first of them in {path} {message}")


def test_a_quote_that_is_never_closed_is_named_with_the_line_it_opens_in(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,text\n1,"one\ntwo"\n2,"three\nfour\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.csv line 4: not a row of a table \(unexpected end of data\)"):
        find_documents([tmp_path])


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv"])
def test_a_wrong_field_names_those_there_are(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_text(f"{HEADERS[suffix]}\n{GOOD[suffix]}\n", encoding="utf-8")
    names = "text" if suffix == "jsonl" else "id, text"
    for skip in (False, True):
        with pytest.raises(UserError, match=rf"there is no 'body' among its fields {names}: name the one .*--text_key"):
            find_documents([path], reading=Reading(text_key="body", skip_broken=skip))


def test_the_field_with_the_text_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "no", "body": "yes"}\n', encoding="utf-8")
    (tmp_path / "b.csv").write_text("body,text\nyes,no\n", encoding="utf-8")
    assert texts(find_documents([tmp_path], reading=Reading(text_key="body"))) == ["yes", "yes"]


def test_lines_may_end_as_on_windows_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'text,id\r\n"one\r\ntwo",1\r\n\r\nthree,2')
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "one"}\r\n\r\n{"text": "two"}')
    assert texts(find_documents([tmp_path])) == ["one\r\ntwo", "three", "one", "two"]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv", "txt.gz"])
def test_a_file_without_records_has_no_text(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"a.{suffix}").write_bytes(b"\n" if suffix == "jsonl" else HEADERS.get(suffix, "").encode())
    with pytest.raises(UserError, match=r"there is no text in .*a\.|the file is empty"):
        find_documents([tmp_path / f"a.{suffix}"])


def test_utf_16_tables_and_records_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\nné\n", encoding="utf-16")
    (tmp_path / "b.jsonl").write_text('{"text": "né"}\n', encoding="utf-16")
    assert texts(find_documents([tmp_path], reading=Reading("utf-16"))) == ["né", "né"]
    with pytest.raises(UserError, match=r"a\.csv: its byte order mark shows that it is utf-16, not utf-8"):
        find_documents([tmp_path])
