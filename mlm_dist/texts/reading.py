"""Reads the texts of files, record by record, in memory that does not grow with the file."""

import codecs
import dataclasses
import gzip
import io
import itertools
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, cast

from tqdm.utils import CallbackIOWrapper

from mlm_dist.config import DataConfig
from mlm_dist.errors import UserError
from mlm_dist.texts.finding import StandardInput, TextFile
from mlm_dist.texts.formats import (
    COMPRESSIONS,
    FORMATS,
    HEAD_BYTES,
    detect,
    refuse_content,
    refuse_encoding,
    table_with,
)
from mlm_dist.texts.records import BrokenRecords, bounded_lines, read_csv, read_json_lines
from mlm_dist.texts.tables import open_zstandard, read_arrow, read_parquet

BLOCK_BYTES = 1 << 18


@dataclass(frozen=True)
class Reading:
    """How texts are read from files.

    Attributes:
        encoding: the character encoding of plain text, JSON Lines, CSV and TSV.
        text_key: the field or column of a record that is its text.
        split: the unit of a plain text that is a document: the whole `document`, or each `line` that is not blank.
        skip_broken: whether broken records are counted and left out, instead of refused.
    """

    encoding: str = "utf-8"
    text_key: str = "text"
    split: Literal["document", "line"] = "document"
    skip_broken: bool = False

    @classmethod
    def from_config(cls, config: DataConfig) -> "Reading":
        """How the texts of a run are read."""
        return cls(config.encoding, config.text_key, config.split)


class Part(NamedTuple):
    """A part of a document. A record has one part.

    Attributes:
        number: the line or row of the file at which the document starts, from 1.
        text: the part.
        is_last: whether the document ends here.
    """

    number: int
    text: str
    is_last: bool


def read_documents(
    file: TextFile,
    reading: Reading,
    broken: BrokenRecords,
    on_read: Callable[[int], object] | None = None,
    check: bool = True,
) -> Iterator[tuple[int, Iterable[str]]]:
    """Read the documents of a file that have text, one after the other.

    Args:
        file: the file.
        reading: how to read it.
        broken: is told about broken records.
        on_read: called with the number of bytes after each read, if given.
        check: whether to refuse plain text that is in another format; false if it was read before.

    Yields:
        The line or row at which a document starts, and its text: a list of one text, or an iterator over the parts of
        a large one, which must be exhausted.

    Raises:
        UserError: the file cannot be read, is not in its format or encoding, or has no field of this name; a record is
            broken, and broken ones are not skipped.
    """
    parts = read_parts(file, reading, broken, on_read, check)
    for part in parts:
        if part.text:
            yield part.number, [part.text] if part.is_last else itertools.chain([part.text], rest_of_document(parts))


def rest_of_document(parts: Iterator[Part]) -> Iterator[str]:
    """The texts of the parts up to the last one of a document."""
    for part in parts:
        yield part.text
        if part.is_last:
            return


def read_parts(
    file: TextFile, reading: Reading, broken: BrokenRecords, on_read: Callable[[int], object] | None, check: bool
) -> Iterator[Part]:
    """The parts of all documents of a file; arguments and errors as those of `read_documents`."""
    try:
        file = detect_format(file, reading)
        with file.open() as opened:
            raw = cast(BinaryIO, CallbackIOWrapper(on_read, opened, "read")) if on_read else opened
            stream = decompress(file, raw)
            if file.format == "text":
                yield from read_text(file, stream, reading, check)
            else:
                for number, text in read_records(file, stream, reading, broken):
                    if reason := fault_of(text, reading.encoding):
                        broken.add(f"{file.path} line {number}", reason)
                    else:
                        yield Part(number, text, is_last=True)
    except (OSError, EOFError, zlib.error) as error:  # those without `strerror` are about the content
        reason = getattr(error, "strerror", None) or f"the file is damaged or cut off ({error})"
        raise UserError(f"{file.path}: {reason}") from error


def detect_format(file: TextFile, reading: Reading) -> TextFile:
    """A file with its format and compression: those that its name shows, or else detected by its first bytes."""
    if file.format:
        return file
    with file.open() as raw:
        kind = detect(raw.read(HEAD_BYTES), reading.encoding)
    file = dataclasses.replace(file, compression=next((name for name in COMPRESSIONS.values() if name == kind), None))
    with file.open() as raw:
        head = decompress(file, raw).read(HEAD_BYTES)
    kind = detect(head, reading.encoding) or table_with(reading.text_key, head, reading.encoding)
    return dataclasses.replace(file, format=next((name for name in FORMATS.values() if name == kind), "text"))


def decompress(file: TextFile, raw: BinaryIO) -> BinaryIO:
    """The decompressed content of a file."""
    match file.compression:
        case "gzip":
            return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
        case "Zstandard":
            return open_zstandard(file.path, raw)
    return raw


def read_text(file: TextFile, stream: BinaryIO, reading: Reading, check: bool) -> Iterator[Part]:
    """The parts of a plain text; `check`: whether to refuse another format."""
    head = stream.read(BLOCK_BYTES)
    if check:
        refuse_encoding(file.path, head, reading.encoding)
        refuse_content(file.path, head[:HEAD_BYTES], reading.encoding)
    blocks = decode_blocks(file.path, head, stream, reading.encoding)
    if reading.split == "document":
        for block, following in itertools.pairwise(itertools.chain(blocks, [""])):
            yield Part(1, block, is_last=not following)
        return
    yield from read_lines(blocks)


def read_lines(blocks: Iterable[str]) -> Iterator[Part]:
    """The parts of the lines of a text that are not blank."""
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    number, kept, has_begun = 1, "", False  # `kept`: the white space at the start of a line
    for block in blocks:
        *ended, rest = newlines.decode(block).split("\n")
        for line in ended:
            text = kept + line
            yield Part(number, text if has_begun or text.strip() else "", is_last=True)
            number, kept, has_begun = number + 1, "", False
        kept += rest
        if has_begun or kept.strip():
            yield Part(number, kept, is_last=False)
            kept, has_begun = "", True
    yield Part(number, "", is_last=True)


def read_records(
    file: TextFile, stream: BinaryIO, reading: Reading, broken: BrokenRecords
) -> Iterator[tuple[int, str]]:
    """The records of a file: the number and the text of each, which is empty where it has none."""
    path, key = file.path, reading.text_key
    match file.format:
        case "Parquet":
            yield from read_parquet(path, seekable(file, stream), key, broken)
        case "Arrow":
            can_map = not file.compression and not isinstance(file, StandardInput)
            yield from read_arrow(path, None if can_map else seekable(file, stream), key, broken)
        case _:
            head = stream.read(HEAD_BYTES)
            refuse_encoding(path, head, reading.encoding)
            blocks = decode_blocks(path, head, stream, reading.encoding, errors="surrogateescape")
            lines = bounded_lines(path, blocks, broken)
            if file.format == "JSON Lines":
                yield from read_json_lines(path, lines, key, broken)
            else:
                yield from read_csv(path, lines, "," if file.format == "CSV" else "\t", key, broken)


def fault_of(text: str, encoding: str) -> str:
    """Why a text, decoded with the error handler `surrogateescape`, is not Unicode; empty if it is."""
    if text.isascii():
        return ""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        character = ord(text[error.start])
        if 0xDC80 <= character <= 0xDCFF:
            return f"not {encoding}: the byte 0x{character - 0xDC00:02x} at character {error.start} of its text"
        return f"the text has half of a character (U+{character:04X} at character {error.start})"
    return ""


def fault_of_given(text: str) -> str:
    """Why a text cannot be one that a model is measured with: it is empty, or not Unicode; empty if it can."""
    return fault_of(text, "UTF-8") if text.strip() else "it is empty"


def seekable(file: TextFile, stream: BinaryIO) -> BinaryIO:
    """The stream, or a copy in a temporary file if it is decompressed, for formats not read from start to end."""
    if not file.compression:
        return stream
    copy = tempfile.TemporaryFile()  # noqa: SIM115 (it is read until it is garbage)
    shutil.copyfileobj(stream, copy)
    return copy


def check_encoding(name: str) -> None:
    """Raise a UserError if there is no such encoding of texts."""
    try:
        "".encode(name)  # fails for codecs such as rot13, which are not text encodings
        codecs.getincrementaldecoder(name)
    except (LookupError, UnicodeError) as error:
        raise UserError(
            f"'{name}' is not a text encoding: give one such as utf-8, latin-1, cp1252 or utf-16"
        ) from error


def decode_blocks(path: Path, head: bytes, stream: BinaryIO, encoding: str, errors: str = "strict") -> Iterator[str]:
    """Decode a text in blocks, without its byte order mark.

    Args:
        path: the file, for messages.
        head: its first bytes.
        stream: the bytes after them.
        encoding: the encoding, which exists.
        errors: what to do about invalid bytes, as in `bytes.decode`.

    Raises:
        UserError: it is not text in this encoding. The message names the byte.
    """
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    may_have_surrogates = errors == "strict" and codecs.lookup(encoding).name != "utf-8"
    start, has_begun = 0, False
    for block in itertools.chain([head], iter(lambda: stream.read(BLOCK_BYTES), b""), [b""]):
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(block, final=not block)
            if may_have_surrogates:
                text.encode()  # fails for half a surrogate pair, which utf-7 accepts
        except UnicodeError as error:
            position, reason = start - pending, str(error)
            if isinstance(error, UnicodeDecodeError):
                position, reason = position + error.start, error.reason
            raise UserError(
                f"{path}: not {encoding} at byte {position} ({reason}); convert it to UTF-8, or set its encoding "
                f"(--encoding, train: --data.encoding)"
            ) from error
        if text and not has_begun:
            text, has_begun = text.removeprefix("\ufeff"), True
        if text:
            yield text
        start += len(block)
