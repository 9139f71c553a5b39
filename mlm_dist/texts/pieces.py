"""Cuts texts into pieces of bounded size, so that the tokens are those of the whole text."""

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple, cast

from mlm_dist.texts.finding import Split

PIECE_CHARACTERS = 1 << 18

# Every tiktoken pattern ends a token where a letter or digit is followed by white space or one of these marks, so a cut
# there does not change the tokens. An apostrophe is not among the marks, because it may begin 's. The second pattern, a
# single newline before a letter or digit, is safe too.
SAFE_CUTS = [re.compile(r"(?<=[^\W_])(?=[\s.,;:!?)。、，．！？；：」])"), re.compile(r"(?<=\S\n)(?=[^\W_])")]


class Piece(NamedTuple):
    """A part of a document. Its pieces, concatenated, are the whole document.

    Attributes:
        split: the split it belongs to.
        text: the part.
        is_last: whether it is the last piece of the document in this split.
    """

    split: Split
    text: str
    is_last: bool


def cut_text(parts: Iterable[str], val_start: int, piece_characters: int = PIECE_CHARACTERS) -> Iterator[Piece]:
    """Cut a text into pieces of at most twice `piece_characters`, between tokens.

    A token is split only if a whole piece has no safe cut, as in text without white space. The pieces do not depend on
    the parts that the text arrives in.

    Args:
        parts: the text.
        val_start: where its validation text starts, in bytes of UTF-8: in fact at the first safe cut from there on.
        piece_characters: the size of the pieces.
    """
    pieces = itertools.chain(splits_and_texts(parts, val_start, piece_characters), [("", "")])
    for (split, text), (next_split, _) in itertools.pairwise(pieces):
        yield Piece(cast(Split, split), text, is_last=split != next_split)


def splits_and_texts(parts: Iterable[str], val_start: int, piece_characters: int) -> Iterator[tuple[str, str]]:
    """The split and the text of each piece; arguments as `cut_text`."""
    split = "train" if val_start else "val"
    kept = ""  # the text after the last piece, without a safe cut except at its end
    for block in equal_blocks(parts, piece_characters):
        text = kept + block
        if split == "train":
            encoded = block.encode()
            if val_start < len(encoded):
                after = len(kept) + len(encoded[: max(0, val_start)].decode(errors="ignore"))
                if cut := first_cut(text, after):
                    yield "train", text[:cut]
                    split, text = "val", text[cut:]
            val_start -= len(encoded)
        cut = 0
        if len(block) == piece_characters:  # otherwise, the text ends here
            cut = last_cut(text) or (len(text) if len(text) >= piece_characters else 0)
        if cut:
            yield split, text[:cut]
        kept = text[cut:]
    if kept:
        yield split, kept


def equal_blocks(parts: Iterable[str], size: int) -> Iterator[str]:
    """A text in blocks of `size` characters, the last of which may be shorter."""
    kept = ""
    for part in parts:
        text = kept + part
        whole = len(text) // size * size
        yield from (text[start : start + size] for start in range(0, whole, size))
        kept = text[whole:]
    if kept:
        yield kept


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
