"""Counts the words in tokens. A word is a run of bytes without ASCII white space, as `wc -w` counts in the C locale."""

from collections.abc import Iterable

import numpy as np

from mlm_dist.data.shards import StoredTokens
from mlm_dist.data.tokenizer import Tokenizer

BLOCK = 1 << 16  # tokens
MOST_BLOCKS = 1 << 8


def block_starts(count: int) -> Iterable[int]:
    """Where to read blocks of a text of `count` tokens.

    Of more than 2**25 tokens, evenly spaced blocks are read, at least 2**24 tokens together.
    """
    return range(0, count, BLOCK * max(1, count // (BLOCK * MOST_BLOCKS)))


def words_per_token(tokens: StoredTokens, tokenizer: Tokenizer) -> float:
    """The number of words per token of a text. Of a long text, evenly spaced blocks are counted."""
    inside = np.zeros(tokenizer.vocab_size, dtype=np.int64)  # words that start after the first byte of a token
    starts, ends = np.zeros(len(inside), dtype=bool), np.ones(len(inside), dtype=bool)  # special tokens are white space
    for token, rank in tokenizer.ranks.items():
        starts[rank], ends[rank] = not token[:1].isspace(), token[-1:].isspace()
        inside[rank] = len(token.split()) - starts[rank]
    words = count = 0
    for start in block_starts(len(tokens)):
        block = np.array(tokens[max(0, start - 1) : start + BLOCK])  # with the token before it
        found = inside[block] + (starts[block] & np.append(True, ends[block[:-1]]))
        found = found[1:] if start else found
        words, count = words + int(found.sum()), count + len(found)
    return words / max(1, count)
