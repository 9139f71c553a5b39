"""Reads minimal pairs: two sentences that differ little, of which one is acceptable."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mlm_dist.arguments import read_lines
from mlm_dist.errors import UserError
from mlm_dist.texts.finding import TextFile, find_files
from mlm_dist.texts.reading import fault_of_given
from mlm_dist.texts.records import MOST_NAMES, convert_records, text_of

PHENOMENON_KEY = "linguistics_term"  # of BLiMP


class MinimalPair(NamedTuple):
    """Two sentences.

    Attributes:
        good: the acceptable one.
        bad: the other one.
        file: the name of their file, without its suffix.
        phenomenon: what they test.
    """

    good: str
    bad: str
    file: str
    phenomenon: str


@dataclass(frozen=True)
class PairFormat:
    """How minimal pairs are read from files.

    Attributes:
        good_key: the field of a JSON record that is its acceptable sentence.
        bad_key: the field that is the other one.
        phenomenon_key: the field that names the phenomenon; None: `linguistics_term` of the records that have it,
            otherwise the name of the file.
        good_line: which of two lines of a text is the acceptable one. Texts cannot be read without it.
    """

    good_key: str = "sentence_good"
    bad_key: str = "sentence_bad"
    phenomenon_key: str | None = None
    good_line: Literal["first", "second"] | None = None


def read_pairs(paths: Sequence[Path], pair_format: PairFormat) -> list[MinimalPair]:
    """Read the pairs of JSON Lines, and of texts with the two sentences of a pair in lines one after the other.

    Args:
        paths: files, folders, and patterns such as `data/*.jsonl`.
        pair_format: how to read them.

    Raises:
        UserError: a file cannot be read or is in another format, a record is not JSON or lacks a field, a sentence is
            empty, a text has an odd number of lines, or it is not known which line is the acceptable one.
    """
    files = find_files(paths)
    stems = Counter(stem_of(Path(file.name)) for file in files)
    pairs = []
    for file in files:
        stem = stem_of(Path(file.name))
        name = stem if stems[stem] == 1 else str(file.path)
        pairs += list(read_file(file, name, pair_format))
    return pairs


def stem_of(path: Path) -> str:
    """A path without its suffix: `blimp/passive_1` for `blimp/passive_1.jsonl`."""
    return str(path.with_suffix(""))


def read_file(file: TextFile, name: str, pair_format: PairFormat) -> Iterator[MinimalPair]:
    """The pairs of a file; `name` is what it is called in the results."""
    if file.compression or file.format not in ("text", "JSON Lines"):
        raise UserError(
            f"{file.path}: minimal pairs are read from files in JSON Lines (*.jsonl) and from texts (*.txt)"
        )
    lines = read_lines(str(file.path))
    read = read_records if file.format == "JSON Lines" else read_alternating
    for number, good, bad, phenomenon in read(file.path, lines, pair_format):
        for key, text in (("acceptable", good), ("other", bad)):
            if fault := fault_of_given(text):
                raise UserError(f"{file.path} line {number}: the {key} sentence of a pair: {fault}")
        yield MinimalPair(good, bad, name, phenomenon or name)


Read = Iterator[tuple[int, str, str, str]]
"""The line of a pair, its sentences, and its phenomenon if it is known."""


def read_records(path: Path, lines: Sequence[str], pair_format: PairFormat) -> Read:
    """The pairs of JSON Lines."""

    def convert(record: Any, _: str) -> tuple[str, str, str]:
        good, bad = field_of(record, pair_format.good_key), field_of(record, pair_format.bad_key)
        return good, bad, phenomenon_of(record, pair_format.phenomenon_key)

    for number, pair in convert_records(path, lines, convert):
        yield number, *pair


def phenomenon_of(record: dict[str, Any], key: str | None) -> str:
    """The phenomenon of a record; empty if it is that of the file."""
    return field_of(record, key or PHENOMENON_KEY) if key or PHENOMENON_KEY in record else ""


def field_of(record: Any, key: str) -> str:
    """A field of a record, which is text. Raises ValueError if it is not there, with the names of those that are."""
    if isinstance(record, dict) and key not in record:
        known = ", ".join(list(record)[:MOST_NAMES])
        raise ValueError(
            f"there is no '{key}' among its fields {known}: --good_key, --bad_key, --phenomenon_key name it"
        )
    return text_of(record, key)


def read_alternating(path: Path, lines: Sequence[str], pair_format: PairFormat) -> Read:
    """The pairs of a text."""
    if not pair_format.good_line:
        raise UserError(f"{path}: which line of a pair is the acceptable one? say it with --good_line first or second")
    if len(lines) % 2:
        raise UserError(f"{path} line {len(lines)}: a pair has two lines, but this is an odd number of lines")
    for index in range(0, len(lines), 2):
        first, second = lines[index : index + 2]
        good, bad = (first, second) if pair_format.good_line == "first" else (second, first)
        yield index + 1, good, bad, ""
