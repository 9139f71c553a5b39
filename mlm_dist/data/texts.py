"""Finds text files and reads them in pieces of bounded size, cut so that the tokens are those of the whole file."""

import codecs
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from mlm_dist.data.formats import HEAD_BYTES, refuse_content, refuse_suffix
from mlm_dist.errors import UserError
from mlm_dist.files import open_regular
from mlm_dist.output import warn

PIECE_BYTES = 1 << 18

Split = Literal["train", "val"]

# Every tiktoken pattern ends a token where a letter or digit is followed by white space or one of these marks, so a cut
# there does not change the tokens. An apostrophe is not among the marks, because it may begin 's. The second pattern, a
# single newline before a letter or digit, is safe too.
SAFE_CUTS = [re.compile(r"(?<=[^\W_])(?=[\s.,;:!?)。、，．！？；：」])"), re.compile(r"(?<=\S\n)(?=[^\W_])")]


@dataclass(frozen=True)
class Document:
    """A text file.

    Attributes:
        name: the name in the corpus: the path relative to the given folder, or the file name.
        path: the path of the file.
        size: the size in bytes.
        val_start: the byte offset at which its validation text starts: 0 if the whole document is validation text,
            `size` (the default) if none of it is.
    """

    name: str
    path: Path
    size: int
    val_start: int = -1

    def __post_init__(self) -> None:
        if self.val_start < 0:
            object.__setattr__(self, "val_start", self.size)

    def open(self) -> BinaryIO:
        """Open the document, a stream of `size` bytes."""
        return open_regular(self.path)


class Piece(NamedTuple):
    """A part of a document. Its pieces, concatenated, are the whole document."""

    split: Split
    text: str


def find_documents(paths: list[Path], val_paths: Sequence[Path] = ()) -> list[Document]:
    """List text files: the given files, and `*.txt` files anywhere below the given folders.

    Args:
        paths: files and folders.
        val_paths: files and folders of the validation split.

    Raises:
        UserError: a path does not exist or cannot be read, a given file is empty or of an unsupported format, or there
            is no text.
    """
    val_files = walk(val_paths)
    val_set = {file.resolve() for _, file in val_files}
    documents: dict[Path, Document] = {}
    for name, file in [*walk(paths), *val_files]:
        try:
            size = file.stat().st_size
        except OSError as error:  # deleted since the folder was listed
            raise UserError(f"{file}: {error.strerror}") from error
        if size == 0:
            if file in paths or file in val_paths:
                raise UserError(f"{file}: the file is empty")
            warn(f"skipped {file}: it is empty")
            continue
        val_start = 0 if file.resolve() in val_set else size
        documents.setdefault(file.resolve(), Document(name, file, size, val_start))
    if not documents:
        given = ", ".join(map(str, [*paths, *val_paths]))
        raise UserError(f"no text in {given}: give text files, or folders with *.txt files")
    return list(documents.values())


def walk(paths: Sequence[Path]) -> list[tuple[str, Path]]:
    """Return names and paths of the text files below `paths`, in a fixed order. Warn about ignored files."""
    found: list[tuple[str, Path]] = []
    for path in paths:
        try:
            if path.is_dir():
                below = sorted(file for file in path.rglob("*") if file.is_file())
                files = [file for file in below if file.match("*.txt")]
                warn_about_skipped(path, [file for file in below if not file.match("*.txt")])
                found += [(file.relative_to(path).as_posix(), file) for file in files]
            elif path.is_file():
                refuse_suffix(path)
                found.append((path.name, path))
            else:
                raise UserError(f"{path}: there is no such file or folder")
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from error
    return found


def warn_about_skipped(folder: Path, files: list[Path]) -> None:
    """Warn about the ignored files of a folder, counted by suffix. Hidden files are not counted."""
    parts = [file.relative_to(folder).parts for file in files]
    suffixes = Counter(file.suffix for file, names in zip(files, parts, strict=True) if not is_hidden(names))
    if suffixes:
        kinds = ", ".join(f"{count:,} {suffix or 'without a suffix'}" for suffix, count in suffixes.most_common(5))
        rest = suffixes.total() - sum(count for _, count in suffixes.most_common(5))
        others = f", {rest:,} others" if rest else ""
        total = suffixes.total()
        files_are = "file that is" if total == 1 else "files that are"
        warn(f"{folder}: skipped {total:,} {files_are} not *.txt ({kinds}{others})")


def is_hidden(names: tuple[str, ...]) -> bool:
    """Whether a file is hidden or in a hidden folder, given the names on its path."""
    return any(name.startswith(".") for name in names)


def read_pieces(document: Document, encoding: str = "utf-8", piece_bytes: int = PIECE_BYTES) -> Iterator[Piece]:
    """Read a document in pieces of about `piece_bytes`, split between tokens.

    A token is split only if a whole piece (a quarter megabyte by default) has no safe cut, as in text without white
    space. The validation text starts at the first safe cut at or after `document.val_start`.

    Raises:
        UserError: as `decode_blocks`.
    """
    split: Split = "val" if document.val_start == 0 else "train"
    kept = ""  # the text after the last piece, without a safe cut except at its end
    for start, block in decode_blocks(document, encoding, piece_bytes):
        text = kept + block
        if split == "train" and start >= document.val_start and (cut := first_cut(text, len(kept))):
            yield Piece(split, text[:cut])
            split, text = "val", text[cut:]
        cut = last_cut(text) or (len(text) if len(text) >= piece_bytes else 0)
        if cut:
            yield Piece(split, text[:cut])
        kept = text[cut:]
    if kept:
        yield Piece(split, kept)


def decode_blocks(document: Document, encoding: str, block_bytes: int) -> Iterator[tuple[int, str]]:
    """Read and decode a file in blocks, one of which starts at `document.val_start`.

    Yields:
        The byte offset of each block, and its text.

    Raises:
        UserError: there is no such encoding, or the file cannot be read, has an unsupported format, or is not text in
            this encoding. In the last case, the message names the byte.
    """
    try:
        "".encode(encoding)  # fails for codecs such as rot13, which are not text encodings
        decoder = codecs.getincrementaldecoder(encoding)()
    except (LookupError, UnicodeError) as error:
        raise UserError(
            f"'{encoding}' is not a text encoding: give one such as utf-8, latin-1, cp1252 or utf-16"
        ) from error
    start, has_begun = 0, False
    try:
        with document.open() as file:
            refuse_content(document.path, file.read(HEAD_BYTES), encoding)
            file.seek(0)
            while True:
                bound = block_bytes if start >= document.val_start else min(block_bytes, document.val_start - start)
                block = file.read(bound)
                pending = len(decoder.getstate()[0])
                try:
                    text = decoder.decode(block, final=not block)
                    text.encode()  # fails for half a surrogate pair, which utf-7 accepts
                except UnicodeError as error:
                    position, reason = start - pending, str(error)
                    if isinstance(error, UnicodeDecodeError):
                        position, reason = position + error.start, error.reason
                    raise UserError(
                        f"{document.path}: not {encoding} at byte {position} ({reason}); convert it to UTF-8, or set "
                        f"its encoding (prepare: --encoding, train: --data.encoding)"
                    ) from error
                if text and not has_begun:
                    text, has_begun = text.removeprefix("\ufeff"), True
                yield start, text
                if not block:
                    return
                start += len(block)
    except OSError as error:
        raise UserError(f"{document.path}: {error.strerror}") from error


def first_cut(text: str, after: int) -> int:
    """The first safe cut of a text at or after a position; 0 if there is none."""
    matches = (pattern.search(text, after) for pattern in SAFE_CUTS)
    return min((match.start() for match in matches if match), default=0)


def last_cut(text: str) -> int:
    """The last safe cut of a text; 0 if there is none."""
    for window in (256, 4096, len(text)):
        begin = max(0, len(text) - window)
        for pattern in SAFE_CUTS:
            *_, last = [0, *(match.start() for match in pattern.finditer(text, begin))]
            if last:
                return last
    return 0
