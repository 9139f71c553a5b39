"""Text files, found and read in pieces of bounded size that tokenize as the whole file would."""

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from mlm_dist.errors import UserError, warn
from mlm_dist.files import open_regular

PIECE_BYTES = 1 << 18

Split = Literal["train", "val"]

# Every tiktoken pattern ends a token where a letter or digit is followed by white space or by a mark such as these
# (an apostrophe may begin 's): cutting there changes no token. So it is with a single newline before a letter.
SAFE_CUTS = [re.compile(r"(?<=[^\W_])(?=[\s.,;:!?)。、，．！？；：」])"), re.compile(r"(?<=\S\n)(?=[^\W_])")]


@dataclass(frozen=True)
class Document:
    """A text file.

    Attributes:
        name: what the corpus calls it: the path below the folder that was given, or the file's name.
        path: where it is.
        size: bytes.
        val_start: byte from which on it is held out; `size` for a document that is not, 0 for one that wholly is.
    """

    name: str
    path: Path
    size: int
    val_start: int

    def open(self) -> BinaryIO:
        """Open its `size` bytes."""
        return open_regular(self.path)


class Piece(NamedTuple):
    """A stretch of a document: its pieces, one after the other, are the document."""

    split: Split
    text: str


def find_documents(paths: list[Path], val_paths: list[Path], val_fraction: float) -> list[Document]:
    """List the text files that paths name: files themselves, and `*.txt` anywhere below folders.

    Args:
        paths: files and folders.
        val_paths: files and folders to hold out whole. Where there are any, no tails are held out.
        val_fraction: the tail of every other document that is held out, as a fraction of its bytes.

    Raises:
        UserError: a path is missing, a file named outright is empty, or no text is found.
    """
    val_files = walk(val_paths)
    held_out = {file.resolve() for _, file in val_files}
    if val_paths:
        val_fraction = 0.0
    documents: dict[Path, Document] = {}
    for name, file in [*walk(paths), *val_files]:
        size = file.stat().st_size
        if size == 0:
            if file in paths or file in val_paths:
                raise UserError(f"{file}: the file is empty")
            warn(f"{file} is empty and left out")
            continue
        val_start = 0 if file.resolve() in held_out else round(size * (1 - val_fraction))
        documents.setdefault(file.resolve(), Document(name, file, size, val_start))
    if not documents:
        given = ", ".join(map(str, paths + val_paths))
        raise UserError(f"no text in {given}: give text files, or folders with *.txt files")
    return list(documents.values())


def walk(paths: list[Path]) -> list[tuple[str, Path]]:
    """Names and paths of the text files below `paths`, in a fixed order."""
    found: list[tuple[str, Path]] = []
    for path in paths:
        try:
            if path.is_dir():
                files = sorted(file for file in path.rglob("*.txt") if file.is_file())
                found += [(file.relative_to(path).as_posix(), file) for file in files]
            elif path.is_file():
                found.append((path.name, path))
            else:
                raise UserError(f"{path}: there is no such file or folder")
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from error
    return found


def read_pieces(document: Document, encoding: str = "utf-8", piece_bytes: int = PIECE_BYTES) -> Iterator[Piece]:
    """Read a document as pieces of about `piece_bytes`, cut where no token is cut.

    Only in a text that offers no such place for a whole piece (a quarter megabyte without white space) is a token
    cut. The held-out part begins at the first such place at or after `document.val_start`.

    Raises:
        UserError: the file is not text in that encoding; names file and byte.
    """
    split: Split = "val" if document.val_start == 0 else "train"
    kept = ""  # text that no piece has taken yet, without a safe cut but at its end
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
    """Read and decode a file block by block, one block beginning at `document.val_start`.

    Yields:
        The byte at which the block starts, and its text.
    """
    try:
        "".encode(encoding)  # refuses codecs such as rot13, which are none of text
        decoder = codecs.getincrementaldecoder(encoding)()
    except (LookupError, UnicodeError) as error:
        raise UserError(f"there is no text encoding '{encoding}': utf-8, latin-1, cp1252, utf-16 are some") from error
    start = 0
    try:
        with document.open() as file:
            while True:
                bound = block_bytes if start >= document.val_start else min(block_bytes, document.val_start - start)
                block = file.read(bound)
                pending = len(decoder.getstate()[0])
                try:
                    text = decoder.decode(block, final=not block)
                except UnicodeError as error:
                    place, reason = start - pending, str(error)
                    if isinstance(error, UnicodeDecodeError):
                        place, reason = place + error.start, error.reason
                    raise UserError(
                        f"{document.path}: not {encoding} at byte {place} ({reason}); give the file's own encoding "
                        f"(prepare: --encoding, train: --data.encoding)"
                    ) from error
                yield start, text.removeprefix("\ufeff") if start == 0 else text
                if not block:
                    return
                start += len(block)
    except OSError as error:
        raise UserError(f"{document.path}: {error.strerror}") from error


def first_cut(text: str, after: int) -> int:
    """The first safe cut in a text at or after a position; 0 if there is none."""
    matches = (pattern.search(text, after) for pattern in SAFE_CUTS)
    return min((match.start() for match in matches if match), default=0)


def last_cut(text: str) -> int:
    """The last safe cut in a text; 0 if there is none."""
    for window in (256, 4096, len(text)):
        begin = max(0, len(text) - window)
        for pattern in SAFE_CUTS:
            *_, last = [0, *(match.start() for match in pattern.finditer(text, begin))]
            if last:
                return last
    return 0
