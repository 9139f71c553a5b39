"""The formats of files: which are read, and which are refused. A model would learn markup as if it were prose."""

import codecs
import csv
import itertools
import os
import re
from pathlib import Path
from typing import Literal, NoReturn

from mlm_dist.errors import UserError

HEAD_BYTES = 1 << 12  # read to detect the format

Format = Literal["text", "JSON Lines", "CSV", "TSV", "Parquet", "Arrow"]
Compression = Literal["gzip", "Zstandard"]

# By the suffix of a file.
FORMATS: dict[str, Format] = {
    **{".txt": "text", ".md": "text", ".jsonl": "JSON Lines", ".ndjson": "JSON Lines", ".csv": "CSV", ".tsv": "TSV"},
    **{".parquet": "Parquet", ".arrow": "Arrow"},
}
COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".zst": "Zstandard"}

DECOMPRESS = "decompress it first"
EXTRACT = "extract its text into *.txt files"
SAVE_AS_TEXT = "save it as plain text"

# What the user can do with a file of each format that is not read.
ADVICE = {
    "bzip2": DECOMPRESS,
    "xz": DECOMPRESS,
    "zip": EXTRACT,
    "7-Zip": EXTRACT,
    "tar": EXTRACT,
    "JSON": "convert it to JSON Lines, one object a line",
    "Feather": "save it as Parquet",
    "HTML": EXTRACT,
    "XML": EXTRACT,
    "PDF": SAVE_AS_TEXT,
    "EPUB": SAVE_AS_TEXT,
    "Word": SAVE_AS_TEXT,
    "OpenDocument": SAVE_AS_TEXT,
    "RTF": SAVE_AS_TEXT,
}

REFUSED = {
    **{".bz2": "bzip2", ".xz": "xz", ".zip": "zip", ".7z": "7-Zip", ".tar": "tar", ".json": "JSON"},
    **{".feather": "Feather", ".html": "HTML", ".htm": "HTML", ".xhtml": "HTML", ".xml": "XML"},
    **{".pdf": "PDF", ".epub": "EPUB", ".doc": "Word", ".docx": "Word", ".odt": "OpenDocument", ".rtf": "RTF"},
}

MAGIC = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"PK\x03\x04": "zip",
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
    b"PAR1": "Parquet",
    b"ARROW1": "Arrow",
    b"\xff\xff\xff\xff": "Arrow",  # the marker before each message of a stream
    b"%PDF-": "PDF",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "Word",
    b"{\\rtf": "RTF",
}

ATTRIBUTE = r"""(?:\s+[\w:.-]+\s*=\s*(?:"[^"]*"|'[^']*'))"""

# A novel may begin with a brace or an angle bracket, but not with a JSON key or an HTML tag.
BEGINNINGS = {
    "JSON Lines": re.compile(r'\{ *"(?:[^"\\\n]|\\.)*" *:.*\}\s*\n\s*\{'),
    "JSON": re.compile(r'(?:\[\s*)?\{\s*"(?:[^"\\\n]|\\.)*"\s*:'),
    "HTML": re.compile(rf"<!doctype\s+html\b|<(?:html|head|body){ATTRIBUTE}*\s*>", re.I),
    "XML": re.compile(r"<\?xml\b"),
}

BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def compression_of(path: Path) -> Compression | None:
    """The compression of a file by its suffix."""
    return COMPRESSIONS.get(suffix_of(path.name))


def format_of(path: Path) -> Format | None:
    """The format of a file by its suffix, before that of its compression; None if it is not one that is read."""
    return FORMATS.get(inner_suffix(path))


def inner_suffix(path: Path) -> str:
    """The suffix of a file in lower case, before that of its compression."""
    suffix = suffix_of(path.name)
    return suffix_of(path.name[: -len(suffix)]) if suffix in COMPRESSIONS else suffix


def suffix_of(name: str) -> str:
    """The last suffix of a file name in lower case."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 (a Path costs more, for each of many files)


def refuse_suffix(path: Path) -> None:
    """Raise a UserError if the suffix of a file shows that it is in a format that is not read."""
    if name := REFUSED.get(inner_suffix(path)):
        refuse(path, name, "; if it is plain text, rename it to *.txt")


def refuse_encoding(path: Path, head: bytes, encoding: str) -> None:
    """Raise a UserError if the byte order mark of a file shows that it is in another encoding.

    Args:
        path: the file, for the message.
        head: its first `HEAD_BYTES` bytes.
        encoding: the encoding that the file will be read in.
    """
    actual = next((actual for mark, actual in BYTE_ORDER_MARKS.items() if head.startswith(mark)), None)
    if actual and not codecs.lookup(encoding).name.startswith(("utf-16", "utf-32")):
        raise UserError(
            f"{path}: its byte order mark shows that it is {actual}, not {encoding}: convert it to UTF-8, or "
            f"set its encoding (--encoding {actual}, train: --data.encoding {actual})"
        )


def refuse_content(path: Path, head: bytes, encoding: str) -> None:
    """Raise a UserError if the first bytes of a file show that it is not plain text; arguments as `refuse_encoding`."""
    name = detect(head, encoding)
    suffixes = [*FORMATS.items(), *COMPRESSIONS.items()]
    if suffix := next((suffix for suffix, format_ in suffixes if format_ == name), None):
        raise UserError(f"{path}: the format is {name}, but its name says plain text: rename it to *{suffix}")
    if name:
        refuse(path, name)


def detect(head: bytes, encoding: str) -> str | None:
    """The format of a file by its first bytes; None for plain text."""
    if name := next((name for magic, name in MAGIC.items() if head.startswith(magic)), None):
        return name
    text = head.decode(encoding, errors="ignore").removeprefix("\ufeff").lstrip()
    name = next((name for name, beginning in BEGINNINGS.items() if beginning.match(text)), None)
    return name or table_format(text, is_whole=len(head) < HEAD_BYTES)


def table_format(text: str, is_whole: bool) -> str | None:
    """Return `TSV` or `CSV` if a text is such a table, otherwise None.

    In a table, every line has the same number of fields. Prose does not keep to that line after line.

    Args:
        text: the beginning of a file.
        is_whole: whether `text` is the whole file. If not, the last line may be incomplete.
    """
    for name, delimiter, fewest_fields, fewest_rows in (("TSV", "\t", 2, 5), ("CSV", ",", 3, 10)):
        rows = filter(None, csv.reader(text.splitlines(), delimiter=delimiter))
        width = len(next(rows, []))
        last_rows = itertools.chain(rows, [[]] * is_whole)  # the last row is compared only if it is complete
        count = 1
        for row, _ in itertools.pairwise(last_rows):
            if len(row) != width:
                break
            count += 1
        else:
            if count >= fewest_rows and width >= fewest_fields:
                return name
    return None


def table_with(column: str, head: bytes, encoding: str) -> str | None:
    """Return `TSV` or `CSV` if the first line of a file names the columns of such a table, this one among them."""
    first, *_ = head.decode(encoding, errors="ignore").removeprefix("\ufeff").splitlines() or [""]
    for name, delimiter in (("TSV", "\t"), ("CSV", ",")):
        if column in next(csv.reader([first], delimiter=delimiter), []) and delimiter in first:
            return name
    return None


def refuse(path: Path, name: str, hint: str = "") -> NoReturn:
    """Raise a UserError about a format that is not read."""
    raise UserError(f"{path}: the format is {name}, which is not read: {ADVICE[name]}{hint}")
