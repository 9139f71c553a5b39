"""Reads labelled texts: one text or two, and a class or a score."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mlm_dist.errors import UserError
from mlm_dist.files import read_bytes
from mlm_dist.texts.formats import (
    HEAD_BYTES,
    compression_of,
    detect,
    format_of,
    refuse_content,
    refuse_encoding,
    refuse_suffix,
    table_with,
)
from mlm_dist.texts.reading import check_encoding, fault_of_given
from mlm_dist.texts.records import LARGEST_RECORD, MOST_NAMES, convert_records, text_of, type_name

DELIMITERS = {"CSV": ",", "TSV": "\t"}


class LabelledText(NamedTuple):
    """A text, or two of them, with its label.

    Attributes:
        texts: one text or two.
        label: as it is in the file.
        place: the file and the line, for messages.
    """

    texts: tuple[str, ...]
    label: str
    place: str


@dataclass(frozen=True)
class LabelFormat:
    """How labelled texts are read from files.

    Attributes:
        text_key: the field of a record that is its text.
        pair_key: the field that is its second text; None: there is one text.
        label_key: the field that is its label.
        encoding: the character encoding.
    """

    text_key: str = "text"
    pair_key: str | None = None
    label_key: str = "label"
    encoding: str = "utf-8"


def read_labelled(path: Path, label_format: LabelFormat) -> list[LabelledText]:
    """Read the labelled texts of a file: JSON Lines, CSV, TSV, or any other text with `LABEL TEXT` in each line.

    Raises:
        UserError: the file cannot be read, is in another format or encoding, or has no text; a record is broken or
            lacks a field; a text or a label is empty.
    """
    lines = decode(path, label_format).split("\n")
    kind = format_of(path)
    if kind == "JSON Lines":
        read = read_records(path, lines, label_format)
    elif kind in ("CSV", "TSV"):
        read = read_rows(path, lines, DELIMITERS[kind], label_format)
    elif label_format.pair_key:
        raise UserError(f"{path}: a line `LABEL TEXT` has one text: give two (--pair_key) as JSON Lines or CSV")
    else:
        read = read_lines(lines)
    examples = [LabelledText(texts, label.strip(), f"{path} line {number}") for number, texts, label in read]
    for texts, label, place in examples:
        for text in texts:
            if fault := fault_of_given(text):
                raise UserError(f"{place}: its text: {fault}")
        if not label:
            raise UserError(f"{place}: its label is empty")
    if not examples:
        raise UserError(f"{path}: it has no labelled text")
    return examples


def decode(path: Path, label_format: LabelFormat) -> str:
    """The content of a file as text.

    Raises:
        UserError: it cannot be read, is clearly of another format than its name says, or is not in this encoding.
    """
    encoding = label_format.encoding
    check_encoding(encoding)
    refuse_suffix(path)
    if compression_of(path) or format_of(path) in ("Parquet", "Arrow"):
        raise UserError(f"{path}: labelled texts are read from JSON Lines, CSV, TSV and lines `LABEL TEXT`")
    try:
        content = read_bytes(path)
        refuse_encoding(path, content[:HEAD_BYTES], encoding)
        if format_of(path) in (None, "text"):
            refuse_other_formats(path, content[:HEAD_BYTES], label_format)
        text = content.decode(encoding)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except UnicodeError as error:
        place = f" at byte {error.start}" if isinstance(error, UnicodeDecodeError) else ""
        raise UserError(f"{path}: not {encoding}{place}: name its encoding, such as --encoding latin-1") from error
    return text.removeprefix("\ufeff").replace("\r\n", "\n")


def refuse_other_formats(path: Path, head: bytes, label_format: LabelFormat) -> None:
    """Raise a UserError if the first bytes of a file show that it does not have lines `LABEL TEXT`."""
    if name := table_with(label_format.label_key, head, label_format.encoding):
        raise UserError(f"{path}: the format is {name}, but its name says plain text: rename it to *.{name.lower()}")
    if detect(head, label_format.encoding) != "TSV":  # which `LABEL<TAB>TEXT` seems to be
        refuse_content(path, head, label_format.encoding)


Read = Iterator[tuple[int, tuple[str, ...], str]]
"""The line of an example, its texts and its label."""


def read_lines(lines: list[str]) -> Read:
    """The examples of lines `LABEL TEXT`."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            label, *rest = line.split(maxsplit=1)
            yield number, (rest[0].strip() if rest else "",), label


def read_records(path: Path, lines: list[str], label_format: LabelFormat) -> Read:
    """The examples of JSON Lines."""
    keys = text_keys(label_format)

    def convert(record: Any, place: str) -> tuple[tuple[str, ...], str]:
        if isinstance(record, dict):
            check_keys(place, [*keys, label_format.label_key], [*record])
        return tuple(text_of(record, key) for key in keys), label_of(record[label_format.label_key])

    for number, example in convert_records(path, lines, convert):
        yield number, *example


def label_of(value: Any) -> str:
    """A label in JSON as text. Raises ValueError if it is neither text nor a number."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"its label is {type_name(value)}, not text or a number")
    return str(value)


def read_rows(path: Path, lines: list[str], delimiter: str, label_format: LabelFormat) -> Read:
    """The examples of a table, whose first row names the columns."""
    csv.field_size_limit(LARGEST_RECORD)
    rows = csv.reader((f"{line}\n" for line in lines), delimiter=delimiter, strict=True)
    number, names, columns = 1, list[str](), list[int]()
    try:
        for row in rows:
            if not names:
                check_keys(str(path), [*text_keys(label_format), label_format.label_key], row)
                names, columns = row, [row.index(key) for key in text_keys(label_format)]
            elif row and len(row) != len(names):
                raise UserError(f"{path} line {number}: it has {len(row)} fields instead of {len(names)}")
            elif row:
                label = row[names.index(label_format.label_key)]
                yield number, tuple(row[column] for column in columns), label
            number = rows.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path} line {number}: not a row of a table ({error})") from error


def text_keys(label_format: LabelFormat) -> list[str]:
    """The fields of a record that are its texts."""
    return [label_format.text_key, *filter(None, [label_format.pair_key])]


def check_keys(place: str, keys: list[str], names: list[str]) -> None:
    """Raise a UserError that names the fields of a record, unless it has all `keys`."""
    for key in keys:
        if key not in names:
            known = ", ".join(name for name in names[:MOST_NAMES] if name)
            raise UserError(
                f"{place}: there is no '{key}' among its fields {known}: --text_key, --pair_key, --label_key name them"
            )
