"""Finds where words start in rows of token ids, with a table built once from the vocabulary of a byte-level BPE.

A word is a run of letters, of digits or of other signs, with the space before it. This is how the tokenizers' own
patterns split text, except that an apostrophe counts as a letter. In scripts without spaces between words, each token
is a word, since there is no dictionary. A character that is split into several tokens stays whole, and an accent stays
with its letter.
"""

import unicodedata
from collections import Counter
from functools import cache

import numpy as np
import regex
import torch
from torch.nn.functional import pad

from mlm_dist.data.tokenizer import Tokenizer

# Kinds of the first and the last character of a token. From LETTER on, a word continues with characters of its kind.
NOTHING, ALONE, CONTINUATION, SPACE, LETTER, DIGIT, SIGN = range(7)

WITHOUT_SPACES = regex.compile(
    r"[\p{Han}\p{Hiragana}\p{Katakana}\N{KATAKANA-HIRAGANA PROLONGED SOUND MARK}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
    r"\p{Tibetan}\p{Yi}]"
)
APOSTROPHES = "'\N{RIGHT SINGLE QUOTATION MARK}"
# GPT-2 splits the curly one into two tokens, and other quotation marks start with the same bytes.
SPLIT_APOSTROPHE = APOSTROPHES[1].encode()[:2], APOSTROPHES[1].encode()[2:]


class WordTable:
    """Finds where words start.

    Args:
        tokenizer: whose ids the rows hold.
        device: of the rows.
    """

    def __init__(self, tokenizer: Tokenizer, device: torch.device) -> None:
        table = np.full((4, tokenizer.vocab_size), NOTHING, dtype=np.int8)
        for token, rank in tokenizer.ranks.items():
            split_apostrophe = token == SPLIT_APOSTROPHE[0], token.startswith(SPLIT_APOSTROPHE[1])
            table[:, rank] = kind_at_start(token), kind_at_end(token), *split_apostrophe
        self.at_start, self.at_end, self.starts_apostrophe, self.ends_apostrophe = torch.from_numpy(table).to(device)

    def starts(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, T) ids -> (B, T) bool, whether a word starts at the token. The first token of a row always starts one."""
        is_apostrophe = pad(self.starts_apostrophe[tokens][:, :-1] & self.ends_apostrophe[tokens][:, 1:], (0, 1)).bool()
        start, end = (kinds[tokens].masked_fill(is_apostrophe, LETTER) for kinds in (self.at_start, self.at_end))
        after_special = end[:, :-1] == NOTHING
        # A token with only the last bytes of a character ends with the character that the previous token has started.
        end = end.gather(1, last_true(end != CONTINUATION))
        now, before = start[:, 1:], end[:, :-1]
        continues = (now == CONTINUATION) & ~after_special | (now >= LETTER) & ((before == now) | (before == SPACE))
        return pad(~continues, (1, 0), value=True)


def last_true(flags: torch.Tensor) -> torch.Tensor:
    """For each position, the last position up to it where the flag is set, else 0: (B, T) bool -> (B, T) int64."""
    return (torch.arange(flags.shape[1], device=flags.device) * flags).cummax(1).values


def kind_at_start(token: bytes) -> int:
    """The kind of a token's first character; CONTINUATION if it continues a character of the previous token."""
    return CONTINUATION if is_continuation_byte(token[0]) else kind_of_first(token[:4])


def kind_at_end(token: bytes) -> int:
    """The kind of a token's last character; CONTINUATION if that started in a previous token."""
    firsts = (token[index:][:4] for index in reversed(range(len(token))) if not is_continuation_byte(token[index]))
    return next((kind for kind in map(kind_of_first, firsts) if kind != CONTINUATION), CONTINUATION)


def is_continuation_byte(byte: int) -> bool:
    """Whether a UTF-8 byte is not the first byte of a character."""
    return byte & 0xC0 == 0x80


@cache
def kind_of_first(prefix: bytes) -> int:
    """The kind of the first character of some bytes. If it is cut off, the most common kind among its completions."""
    size = 1 + sum(prefix[0] >= lead for lead in (0xC0, 0xE0, 0xF0))
    code = prefix[0] & (0xFF >> size)
    for byte in prefix[1:size]:
        code = code << 6 | byte & 0x3F
    missing = 6 * max(0, size - len(prefix))
    candidates = range(code << missing, min((code + 1) << missing, 0x110000))
    kinds = Counter(kind_of(chr(candidate)) for candidate in candidates if is_assigned(chr(candidate)))
    return max(kinds, key=lambda kind: kinds[kind], default=ALONE)


def is_assigned(character: str) -> bool:
    """Whether Unicode assigns a character to a code point."""
    return unicodedata.category(character) not in ("Cn", "Co", "Cs")


def kind_of(character: str) -> int:
    """The kind of a character."""
    category = unicodedata.category(character)
    if category[0] == "M" or category == "Cf":  # accents, and joiners in an emoji
        return CONTINUATION
    if character == " ":
        return SPACE
    if character.isspace() or WITHOUT_SPACES.match(character):
        return ALONE
    return LETTER if character in APOSTROPHES else {"L": LETTER, "N": DIGIT}.get(category[0], SIGN)
