"""Marks that stand for tokens in a text: `[MASK]`, `[MASK*n]` and `[GAP:n]`; and hints on misspelt ones."""

import re

MASKED_WORD = re.compile(r"\[MASK(?:\*0*(\d+))?\]")
GAP = re.compile(r"\[GAP:0*([1-9]\d*)\]", re.ASCII)

# Spellings of other tools, and typos.
LIKE_A_MASK = re.compile(r"[\[<({]+\s*mask\s*(?:[*:x]?\s*\d+)?\s*[\])>}]+", re.ASCII | re.I)
LIKE_A_GAP = re.compile(r"\[(?:GAP|gap:|Gap:)[^\]]*\]?|(?i:[\[<({]+\s*gap\s*[*:=]?\s*\d+\s*[\])>}]+)", re.ASCII)


def misspelt_mask(text: str) -> str | None:
    """Return a hint on a misspelt mask in a text that has no mask; None if nothing looks like one."""
    found = LIKE_A_MASK.search(text)
    return found and f"{found[0]} is written [MASK{with_number(found[0], '*')}]"


def misspelt_gap(text: str) -> str | None:
    """Return a hint on the first misspelt gap of a text; None if no gap is misspelt."""
    for found in LIKE_A_GAP.findall(text):
        if not GAP.fullmatch(found):
            return (
                f"{found} is not a gap: write [GAP{with_number(found, ':') or ':5'}], the number being that of tokens"
            )
    return None


def with_number(mark: str, separator: str) -> str:
    """The number in a misspelt mark, after the correct separator; empty if the mark has no number above 0."""
    number = re.search(r"[1-9]\d*", mark)
    return separator + number[0] if number else ""
