"""Marks that stand for tokens in a text, `[MASK]`, `[MASK*n]` and `[GAP:n]`, and how they are misspelt."""

import re

MASKED_WORD = re.compile(r"\[MASK(?:\*0*(\d+))?\]")
GAP = re.compile(r"\[GAP:0*([1-9]\d*)\]", re.ASCII)

# As other tools spell them, or with a slip.
LIKE_A_MASK = re.compile(r"[\[<({]+\s*mask\s*(?:[*:x]?\s*\d+)?\s*[\])>}]+", re.ASCII | re.I)
LIKE_A_GAP = re.compile(r"\[(?:GAP|gap:|Gap:)[^\]]*\]?|(?i:[\[<({]+\s*gap\s*[*:=]?\s*\d+\s*[\])>}]+)", re.ASCII)


def misspelt_mask(text: str) -> str | None:
    """What in a text without a mask was meant as one, and how it is written; None if nothing looks like one."""
    found = LIKE_A_MASK.search(text)
    return found and f"{found[0]} is written [MASK{with_number(found[0], '*')}]"


def misspelt_gap(text: str) -> str | None:
    """What in a text looks like a gap and cannot be read, and how a gap is written; None if there is nothing."""
    for found in LIKE_A_GAP.findall(text):
        if not GAP.fullmatch(found):
            return (
                f"{found} is not a gap: write [GAP{with_number(found, ':') or ':5'}], the number being that of tokens"
            )
    return None


def with_number(mark: str, separator: str) -> str:
    """The number in a mark as the right spelling has it; empty if there is none above 0."""
    number = re.search(r"[1-9]\d*", mark)
    return separator + number[0] if number else ""
