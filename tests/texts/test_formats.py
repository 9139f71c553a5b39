"""Files that are clearly not plain text are refused. Novels are read."""

import bz2
import csv
import gzip
import io
import json
import lzma
import zipfile
from pathlib import Path

import pytest

from mlm_dist.data.preparation import SAMPLE_TEXT
from mlm_dist.errors import UserError
from mlm_dist.texts.document_list import find_documents
from mlm_dist.texts.reading import Reading
from tests.conftest import verb

PROSE = SAMPLE_TEXT.read_text(encoding="utf-8")
RECORDS = [{"id": i, "text": line} for i, line in enumerate(PROSE.splitlines()[:40])]


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("novel.txt", PROSE)
    return file.getvalue()


def table(delimiter: str) -> bytes:
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter).writerows([record["id"], record["text"], "en"] for record in RECORDS)
    return file.getvalue().encode()


CONTENTS = {
    "gzip": gzip.compress(PROSE.encode()),
    "bzip2": bz2.compress(PROSE.encode()),
    "xz": lzma.compress(PROSE.encode()),
    "zip": zipped(),
    "Zstandard": b"\x28\xb5\x2f\xfd" + bytes(100),
    "PDF": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
    "Parquet": b"PAR1" + bytes(100),
    "JSON Lines": "".join(json.dumps(record) + "\n" for record in RECORDS).encode(),
    "JSON": json.dumps(RECORDS, indent=2).encode(),
    "CSV": table(","),
    "TSV": table("\t"),
    "HTML": f"\ufeff\n<!DOCTYPE html>\n<html><body><p>{PROSE}</p></body></html>".encode(),
    "XML": f'<?xml version="1.0"?>\n<TEI><text>{PROSE}</text></TEI>'.encode(),
    "RTF": b"{\\rtf1\\ansi some words}",
}


READABLE = {"gzip": "gz", "Zstandard": "zst", "Parquet": "parquet", "JSON Lines": "jsonl", "CSV": "csv", "TSV": "tsv"}


@pytest.mark.parametrize("name", CONTENTS)
def test_a_format_that_is_not_plain_text_is_detected_by_its_content(name: str, tmp_path: Path) -> None:
    (tmp_path / "novel.txt").write_bytes(CONTENTS[name])
    advice = rf"its name says .*rename it to \*\.{READABLE[name]}" if name in READABLE else r"which is not read: \w+"
    with pytest.raises(UserError, match=rf"novel\.txt: the format is {name}, (but )?{advice}"):
        find_documents([tmp_path])


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_the_format_is_detected_in_every_encoding(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "novel.txt").write_text(CONTENTS["JSON Lines"].decode(), encoding=encoding)
    with pytest.raises(UserError, match="the format is JSON Lines"):
        find_documents([tmp_path], reading=Reading(encoding))


@pytest.mark.parametrize(
    ("suffix", "name"),
    [(".json", "JSON"), (".json.gz", "JSON"), (".HTML", "HTML"), (".tar.gz", "tar"), (".docx", "Word")],
)
def test_a_format_that_is_not_read_is_detected_by_the_suffix(suffix: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / f"novel{suffix}"
    path.write_text(PROSE, encoding="utf-8")
    with pytest.raises(UserError, match=rf"novel{suffix}: the format is {name}, .*; if it is plain text, rename it"):
        find_documents([path])
    with pytest.raises(UserError, match=rf"the format is {name}"):
        find_documents([SAMPLE_TEXT], [path])


@pytest.mark.parametrize(
    "beginning",
    [
        "{He rose} and went.\n",
        "{\n  He rose, he said, and went.\n",
        '{"He rose," she said.}\n',
        "<He rose> and went.\n",
        "<body of water, the>\n",
        "<body of='water', the>\n",
        "[Illustration: a ship, a sea, a sail]\n",
        "PK said so.\n",
        "One, two, three.\nFour, five, six.\n",
        "One\ttwo\nand\tthree\nand four\n",
        "Enter\tHAMLET\nExit\tOPHELIA\tleft\n" * 4,
        "\n".join("a\tb" for _ in range(4)) + "\n",
        "\n".join(f"{word}, he said, {word}" for word in PROSE.split()[:9]) + "\n",
        "\tOne\n\ttwo\n\tthree\n\tfour\n\tfive\n\tsix\n",
        "".join(f"{word}, he said; {word}\n" for word in PROSE.split()[:50]),
    ],
)
def test_prose_with_any_beginning_is_read(beginning: str, tmp_path: Path) -> None:
    (tmp_path / "novel.txt").write_text(beginning + PROSE, encoding="utf-8")
    (tmp_path / "short.txt").write_text(beginning, encoding="utf-8")
    novel, short = (piece.text for _, piece in find_documents([tmp_path]).pieces())
    assert (novel, short) == (beginning + PROSE, beginning)


@pytest.mark.parametrize("rows", [40, 4000])
def test_a_table_is_detected_by_its_complete_lines(rows: int, tmp_path: Path) -> None:
    lines = [f"{row},some words of the row,{'en' * (row % 3)}" for row in range(rows)]
    (tmp_path / "table.txt").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(UserError, match="the format is CSV"):
        find_documents([tmp_path])


def test_utf_16_is_detected_by_its_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "novel.txt").write_text(PROSE, encoding="utf-16")
    with pytest.raises(
        UserError, match=r"novel\.txt: its byte order mark shows that it is utf-16, not utf-8: .*--encoding utf-16, .*"
    ):
        find_documents([tmp_path])
    [piece] = find_documents([tmp_path], reading=Reading("utf-16")).pieces()
    assert piece.piece.text == PROSE


def test_every_command_refuses_html(run_dir: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "page.txt", tmp_path / "out"
    path.write_bytes(CONTENTS["HTML"])
    for arguments in (
        ("prepare", path, "--out", out, "--tokenizer", "bpe", "--vocab_size", 300),
        ("prepare", SAMPLE_TEXT, "--val", path, "--out", out, "--tokenizer", "bpe", "--vocab_size", 300),
        ("train", "--data.path", path, "--data.tokenizer", "bpe", "--model.vocab_size", 300, "--run_dir", out),
        ("evaluate", "--run", run_dir, "--data", path),
    ):
        done = verb(*map(str, arguments), cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert "page.txt: the format is HTML, which is not read: extract its text" in done.stderr
        assert list(tmp_path.iterdir()) == [path]
