"""Parquet and Arrow are read some rows at a time; broken rows and wrong columns are named."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from mlm_dist.errors import UserError
from mlm_dist.texts.document_list import DocumentList, find_documents
from mlm_dist.texts.reading import Reading


def texts(documents: DocumentList) -> list[str]:
    return [piece.text for _, piece in documents.pieces()]


def write(table: pa.Table, path: Path) -> Path:
    """Write a table as Parquet or as an Arrow file or stream."""
    if path.suffix == ".parquet":
        pa.parquet.write_table(table, path)
    else:
        new = pa.ipc.new_file if path.stem == "file" else pa.ipc.new_stream
        with pa.OSFile(str(path), "wb") as sink, new(sink, table.schema) as writer:
            writer.write_table(table)
    return path


FILES = ["a.parquet", "stream.arrow", "file.arrow"]
TYPES = [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_columns_of_text_of_any_type_are_read(name: str, kind: pa.DataType, tmp_path: Path) -> None:
    column = pa.array(["one", None, "né", "one", ""] * 200).cast(kind)
    path = write(pa.table({"other": range(1000), "text": column}), tmp_path / name)
    documents = find_documents([path])
    assert texts(documents) == ["one", "né", "one"] * 200
    assert list(documents.names())[:4] == [f"{name}:{row}" for row in (1, 3, 4, 6)]


@pytest.mark.parametrize("name", FILES)
def test_a_wrong_column_names_those_there_are(name: str, tmp_path: Path) -> None:
    path = write(pa.table({"id": [1], "body": ["a"]}), tmp_path / name)
    with pytest.raises(UserError, match="there is no 'text' among its fields id, body: name the one"):
        find_documents([path])
    with pytest.raises(UserError, match="its column 'id' is int64, not text; columns of text: body"):
        find_documents([path], reading=Reading(text_key="id"))


@pytest.mark.parametrize("name", FILES)
def test_a_row_that_is_not_utf_8_is_refused_or_counted(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    column = pa.array([b"one", b"caf\xe9", b"two"]).view(pa.string())
    path = write(pa.table({"text": column}), tmp_path / name)
    with pytest.raises(UserError, match=rf"{name} row 2: not UTF-8 at byte 3; .*--skip_broken"):
        find_documents([path])
    assert texts(find_documents([path], reading=Reading(skip_broken=True))) == ["one", "two"]
    assert "skipped 1 broken record in" in capsys.readouterr().err


def test_a_text_that_a_row_group_repeats_is_not_held_as_often(tmp_path: Path) -> None:
    # A dictionary stores it once; decoding the row group as a whole would take 400 MB.
    path = write(pa.table({"text": ["long " * 80_000] * 1000}), tmp_path / "a.parquet")
    before = pa.total_allocated_bytes()
    peak = 0
    for _ in find_documents([path]).pieces():
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert 0 < peak < 150_000_000
