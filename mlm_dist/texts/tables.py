"""Reads Parquet and Arrow, and decompresses Zstandard, with pyarrow."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mlm_dist.errors import UserError
from mlm_dist.texts.records import BrokenRecords, check_name

BUFFER_BYTES = 1 << 20
BATCH_BYTES = 1 << 22
LARGEST_BATCH = 256  # rows. Parquet may store a text that is repeated once, so that a few bytes become long rows
ARROW_FILE = b"ARROW1"  # the start of the file format; the stream format, which `datasets` writes, has no such start


def import_pyarrow(path: Path, format_: str) -> Any:
    """Import pyarrow.

    Raises:
        UserError: it is not installed.
    """
    try:
        import pyarrow as pa  # noqa: PLC0415 (an extra)
        import pyarrow.parquet  # noqa: PLC0415
    except ImportError as error:
        raise UserError(f"{path}: to read {format_}, run `pip install 'mlm_dist[formats]'`") from error
    return pa


def open_zstandard(path: Path, raw: BinaryIO) -> BinaryIO:
    """The decompressed content of a file. Unlike the `zstandard` package, pyarrow notices if it is cut off."""
    stream: BinaryIO = import_pyarrow(path, "Zstandard").CompressedInputStream(raw, "zstd")
    return stream


def read_parquet(path: Path, stream: BinaryIO, key: str, broken: BrokenRecords) -> Iterator[tuple[int, str]]:
    """The number and the text of each row of a Parquet file, some rows at a time, whatever the size of a row group.

    Raises:
        UserError: it is not Parquet, or has no such column of text; a row is broken, and broken ones are not skipped.
    """
    pa = import_pyarrow(path, "Parquet")
    try:
        file = pa.parquet.ParquetFile(stream, pre_buffer=False, buffer_size=BUFFER_BYTES)
        check_column(pa, path, key, file.schema_arrow)
        groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
        row_bytes = sum(group.total_byte_size for group in groups) // max(1, file.metadata.num_rows) + 1
        size = max(1, min(LARGEST_BATCH, BATCH_BYTES // row_bytes))
        columns = (batch.column(0) for batch in file.iter_batches(size, columns=[key], use_threads=False))
        yield from column_texts(path, columns, broken)
    except pa.ArrowException as error:
        raise damaged(path, "Parquet", error) from error


def read_arrow(path: Path, stream: BinaryIO | None, key: str, broken: BrokenRecords) -> Iterator[tuple[int, str]]:
    """The number and the text of each row of an Arrow file or stream.

    Args:
        path: the file, which is mapped into memory, so that only the pages that are read take part of it.
        stream: its content, seekable, if it is compressed or standard input.
        key: the column with the text.
        broken: is told about broken rows.

    Raises:
        UserError: it is not Arrow, or has no such column of text; a row is broken, and broken ones are not skipped.
    """
    pa = import_pyarrow(path, "Arrow")
    try:
        source = pa.memory_map(str(path)) if stream is None else stream
        is_file = source.read(len(ARROW_FILE)) == ARROW_FILE
        source.seek(0)
        reader = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
        check_column(pa, path, key, reader.schema)
        batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
        yield from column_texts(path, (batch.column(key) for batch in batches), broken)
    except pa.ArrowException as error:
        raise damaged(path, "Arrow", error) from error


def check_column(pa: Any, path: Path, key: str, schema: Any) -> None:
    """Raise a UserError unless a table has a column of text with this name."""
    check_name(path, key, schema.names)
    kind = schema.field(key).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        texts = ", ".join(field.name for field in schema if "string" in str(field.type)) or "none"
        raise UserError(f"{path}: its column '{key}' is {kind}, not text; columns of text: {texts}")


def column_texts(path: Path, columns: Iterable[Any], broken: BrokenRecords) -> Iterator[tuple[int, str]]:
    """The number and the text of each row, given a column in parts. A text that is null is empty."""
    number = 0
    for column in columns:
        for value in column:
            number += 1
            try:
                yield number, value.as_py() or ""
            except UnicodeDecodeError as error:
                broken.add(f"{path} row {number}", f"not UTF-8 at byte {error.start}")


def damaged(path: Path, format_: str, error: Exception) -> UserError:
    """The error about a file that pyarrow cannot read."""
    first, *_ = str(error).splitlines() or [""]
    return UserError(f"{path}: not {format_}, or damaged ({first.rstrip('.')})")
