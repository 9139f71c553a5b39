"""Reads records of text: JSON Lines, CSV and TSV. Broken records are named, and refused or counted."""

import csv
import json
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from mlm_dist.errors import UserError
from mlm_dist.output import warn

T = TypeVar("T")

LARGEST_RECORD = 1 << 25  # characters: a parser holds a whole record in memory
MOST_NAMES = 20  # in the message about a field that does not exist


class BrokenRecords:
    """What is known about broken records: the first is refused, or all are counted.

    Args:
        skip: whether they are counted.
    """

    def __init__(self, skip: bool = False) -> None:
        self.skip = skip
        self.count = 0
        self.first = ""

    def add(self, place: str, reason: str) -> None:
        """Refuse or count a record.

        Args:
            place: its file and line.
            reason: what is wrong with it.

        Raises:
            UserError: broken records are refused.
        """
        if not self.skip:
            raise UserError(f"{place}: {reason}; repair it, or leave out broken records (prepare: --skip_broken)")
        self.count += 1
        self.first = self.first or f"{place}: {reason}"

    def warn(self) -> None:
        """Say once how many there were."""
        if self.count:
            records = "broken record" if self.count == 1 else "broken records, the first of them"
            warn(f"skipped {self.count:,} {records} in {self.first}")


def bounded_lines(path: Path, blocks: Iterable[str], broken: BrokenRecords) -> Iterator[tuple[int, str]]:
    """The lines of a text with their numbers, without the newline. Those beyond `LARGEST_RECORD` are broken records."""
    number, kept, size = 1, list[str](), 0
    for block in blocks:
        *ended, rest = block.split("\n")
        for line in ended:
            if size <= LARGEST_RECORD:
                yield number, "".join([*kept, line])
            number, kept, size = number + 1, [], 0
        if size <= LARGEST_RECORD < size + len(rest):
            broken.add(f"{path} line {number}", f"it has more than {LARGEST_RECORD:,} characters")
            kept = []
        elif size <= LARGEST_RECORD:
            kept.append(rest)
        size += len(rest)
    if size <= LARGEST_RECORD and any(kept):
        yield number, "".join(kept)


def read_json_lines(
    path: Path, lines: Iterable[tuple[int, str]], key: str, broken: BrokenRecords
) -> Iterator[tuple[int, str]]:
    """The number and the text of each record of JSON Lines. A text that is missing or null is empty.

    Raises:
        UserError: the first record has no such key; a record is broken, and broken ones are not skipped.
    """
    is_first = True
    for number, line in lines:
        if not line or line.isspace():
            continue
        try:
            record = json.loads(line)
            if is_first and isinstance(record, dict):
                check_name(path, key, record)
                is_first = False
            yield number, text_of(record, key)
        except (ValueError, RecursionError) as error:
            broken.add(f"{path} line {number}", json_fault(error))


def convert_records(path: Path, lines: Iterable[str], convert: Callable[[Any, str], T]) -> Iterator[tuple[int, T]]:
    """Convert each record of JSON Lines, none of which may be broken. Yields the number of its line, and the result.

    Args:
        path: of the file, for messages.
        lines: of the file.
        convert: takes a record and its place, for messages; raises `ValueError` if the record is broken.

    Raises:
        UserError: a record is broken.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{path} line {number}"
        try:
            yield number, convert(json.loads(line), place)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place}: {json_fault(error)}") from error


def text_of(record: Any, key: str) -> str:
    """The text of a record.

    Raises:
        ValueError: it has none.
    """
    if not isinstance(record, dict):
        raise ValueError(f"a record must be an object, not {type_name(record)}")
    if key not in record:
        raise ValueError(f"it has no '{key}'")
    text = record[key]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise ValueError(f"'{key}' is {type_name(text)}, not text")
    return text


def json_fault(error: Exception) -> str:
    """What is wrong with a record."""
    if isinstance(error, json.JSONDecodeError):
        return f"it is not JSON at column {error.colno}"
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def type_name(value: object) -> str:
    """The type of a JSON value in words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


def read_csv(
    path: Path, lines: Iterable[tuple[int, str]], delimiter: str, key: str, broken: BrokenRecords
) -> Iterator[tuple[int, str]]:
    """The line and the text of each record of a table, whose first record names the columns.

    Raises:
        UserError: there is no such column; a record is broken, and broken ones are not skipped.
    """
    csv.field_size_limit(LARGEST_RECORD)
    rows = csv.reader((f"{line}\n" for _, line in lines), delimiter=delimiter, strict=True)
    names: list[str] = []
    while True:
        number = rows.line_num + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            broken.add(f"{path} line {number}", f"not a row of a table ({error})")
            continue
        if row is None:
            return
        if not names:
            check_name(path, key, row)
            names, column = row, row.index(key)
        elif len(row) == len(names):
            yield number, row[column]
        elif row:
            broken.add(f"{path} line {number}", f"it has {len(row)} fields instead of {len(names)}")


def check_name(path: Path, key: str, names: Collection[str]) -> None:
    """Raise a UserError that names the fields of a file, unless `key` is one of them."""
    if key not in names:
        known = [name for name in names if name][:MOST_NAMES]
        raise UserError(
            f"{path}: there is no '{key}' among its fields {', '.join(known)}: name the one with the text "
            f"(prepare: --text_key, train: --data.text_key)"
        )
