"""Where words begin in rows of token ids, by a table made once from the vocabulary of a byte-level BPE.

A word is a run of letters, of digits or of other signs, with a space before it: what the tokenizers' own patterns cut
text into, but that an apostrophe counts as a letter. In scripts that put no spaces between words every token is a word,
for want of a dictionary. Characters that are cut into bytes stay whole, and so do accents with their letters.
"""

import unicodedata
from collections import Counter
from functools import cache

import numpy as np
import regex
import torch
from torch.nn.functional import pad

from mlm_dist.data.tokenizer import Tokenizer

# Of the characters at the two ends of a token. From LETTER on, a word goes on with the kind that it has come to.
NOTHING, ALONE, INSIDE, SPACE, LETTER, DIGIT, SIGN = range(7)

WITHOUT_SPACES = regex.compile(
    r"[\p{Han}\p{Hiragana}\p{Katakana}\N{KATAKANA-HIRAGANA PROLONGED SOUND MARK}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
    r"\p{Tibetan}\p{Yi}]"
)
APOSTROPHES = "'\N{RIGHT SINGLE QUOTATION MARK}"
# GPT-2 cuts the curly one in two, and other quotation marks begin with the same bytes.
CUT_APOSTROPHE = APOSTROPHES[1].encode()[:2], APOSTROPHES[1].encode()[2:]


class WordTable:
    """Tells where words begin.

    Args:
        tokenizer: whose ids the rows hold.
        device: of the rows.
    """

    def __init__(self, tokenizer: Tokenizer, device: torch.device) -> None:
        table = np.full((4, tokenizer.vocab_size), NOTHING, dtype=np.int8)
        for token, rank in tokenizer.ranks.items():
            cut_apostrophe = token == CUT_APOSTROPHE[0], token.startswith(CUT_APOSTROPHE[1])
            table[:, rank] = kind_at_begin(token), kind_at_end(token), *cut_apostrophe
        self.at_begin, self.at_end, self.begins_apostrophe, self.ends_apostrophe = torch.from_numpy(table).to(device)

    def begins(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, T) ids -> (B, T) bool, where a word begins. At a row's first token one always does."""
        is_apostrophe = pad(self.begins_apostrophe[tokens][:, :-1] & self.ends_apostrophe[tokens][:, 1:], (0, 1)).bool()
        begin, end = (kinds[tokens].masked_fill(is_apostrophe, LETTER) for kinds in (self.at_begin, self.at_end))
        after_special = end[:, :-1] == NOTHING
        # A token that holds but the last bytes of a character ends with what the token before it has begun.
        end = end.gather(1, last_true(end != INSIDE))
        now, before = begin[:, 1:], end[:, :-1]
        goes_on = (now == INSIDE) & ~after_special | (now >= LETTER) & ((before == now) | (before == SPACE))
        return pad(~goes_on, (1, 0), value=True)


def last_true(flags: torch.Tensor) -> torch.Tensor:
    """For each place of a row the last one up to it where a flag is set, else 0: (B, T) bool -> (B, T) int64."""
    return (torch.arange(flags.shape[1], device=flags.device) * flags).cummax(1).values


def kind_at_begin(token: bytes) -> int:
    """What a token begins with; INSIDE if it goes on with the character before it, or puts an accent on it."""
    return INSIDE if goes_on_with_character(token[0]) else kind_of_first(token[:4])


def kind_at_end(token: bytes) -> int:
    """What a token ends with; INSIDE if that has begun in the token before."""
    firsts = (token[place:][:4] for place in reversed(range(len(token))) if not goes_on_with_character(token[place]))
    return next((kind for kind in map(kind_of_first, firsts) if kind != INSIDE), INSIDE)


def goes_on_with_character(byte: int) -> bool:
    """Whether a byte of UTF-8 is not the first one of a character."""
    return byte & 0xC0 == 0x80


@cache
def kind_of_first(cut: bytes) -> int:
    """The kind of the character that begins some bytes. If they end before it does, the commonest of what it may be."""
    size = 1 + sum(cut[0] >= lead for lead in (0xC0, 0xE0, 0xF0))
    code = cut[0] & (0xFF >> size)
    for byte in cut[1:size]:
        code = code << 6 | byte & 0x3F
    missing = 6 * max(0, size - len(cut))
    candidates = range(code << missing, min((code + 1) << missing, 0x110000))
    kinds = Counter(kind_of(chr(candidate)) for candidate in candidates if is_assigned(chr(candidate)))
    return max(kinds, key=lambda kind: kinds[kind], default=ALONE)


def is_assigned(character: str) -> bool:
    """Whether Unicode has given a code point to a character."""
    return unicodedata.category(character) not in ("Cn", "Co", "Cs")


def kind_of(character: str) -> int:
    """The kind of a character."""
    category = unicodedata.category(character)
    if category[0] == "M" or category == "Cf":  # accents, and what joins the parts of an emoji
        return INSIDE
    if character == " ":
        return SPACE
    if character.isspace() or WITHOUT_SPACES.match(character):
        return ALONE
    return LETTER if character in APOSTROPHES else {"L": LETTER, "N": DIGIT}.get(category[0], SIGN)
