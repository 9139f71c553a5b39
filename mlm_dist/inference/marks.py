"""Marks that stand for tokens in a text: `[MASK]`, `[MASK*n]` and `[GAP:n]`; and hints on misspelt ones."""

import re

MASKED_WORD = re.compile(r"\[MASK(?:\*0*(\d+))?\]")
GAP = re.compile(r"\[GAP:0*([1-9]\d*)\]", re.ASCII)

# Spellings of other tools, and typos.
MASK_LOOKALIKE = re.compile(r"[\[<({]+\s*mask\s*(?:[*:x]?\s*\d+)?\s*[\])>}]+", re.ASCII | re.I)
GAP_LOOKALIKE = re.compile(r"\[(?:GAP|gap:|Gap:)[^\]]*\]?|(?i:[\[<({]+\s*gap\s*[*:=]?\s*\d+\s*[\])>}]+)", re.ASCII)


def misspelt_mask(text: str) -> str | None:
    """Return a hint on a misspelt mask in a text that has no mask; None if nothing looks like one."""
    found = MASK_LOOKALIKE.search(text)
    return found and f"write [MASK{with_number(found[0], '*')}] instead of {found[0]}"


def misspelt_gap(text: str) -> str | None:
    """Return a hint on the first misspelt gap of a text; None if no gap is misspelt."""
    for found in GAP_LOOKALIKE.findall(text):
        if not GAP.fullmatch(found):
            number = with_number(found, ":") or ":5"
            return f"{found} is not a gap: write [GAP{number}], where {number[1:]} is the number of tokens"
    return None


def with_number(mark: str, separator: str) -> str:
    """The number in a misspelt mark, after the correct separator; empty if the mark has no number above 0."""
    number = re.search(r"[1-9]\d*", mark)
    return separator + number[0] if number else ""
