"""Extends a byte-level BPE by tokens learned on other texts: BPE training that starts from an existing vocabulary.

The trainer of `tokenizers` starts from single characters. So each token of the existing vocabulary is spelled as one
character, and each word of the texts as the characters of its tokens. What the trainer merges are then tokens.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache

import regex

from mlm_dist.data.tokenizer import Tokenizer, run_interruptibly
from mlm_dist.errors import UserError

FIRST_CHARACTER = 0x10000  # spells the id 0. No character from here on is white space, which separates words.
MOST_IDS = 0x110000 - FIRST_CHARACTER
CACHED_WORDS = 1 << 20


def extend_bpe(base: Tokenizer, texts: Iterable[str], count: int) -> Tokenizer:
    """Extend a tokenizer by the most frequent merges of its tokens in other texts.

    All its ids stay, and the new tokens have the ids after the last one. tiktoken merges the lowest rank first: in a
    word first the tokens of `base`, then the new ones in the order in which they were learned.

    Args:
        base: the tokenizer to extend.
        texts: the texts to learn from.
        count: the number of new tokens. The result has fewer if the texts are too short: once every word is a token, no
            pair is left to merge.

    Raises:
        UserError: `count` is out of bounds.
    """
    from tokenizers import Tokenizer as Trained  # noqa: PLC0415 (slow to import)
    from tokenizers import models, pre_tokenizers, trainers  # noqa: PLC0415

    if not 1 <= count <= MOST_IDS - base.vocab_size:
        raise UserError(f"--add_tokens is {count}: it must be from 1 to {MOST_IDS - base.vocab_size}")
    characters = {chr(FIRST_CHARACTER + rank): token for token, rank in base.ranks.items()}
    trained = Trained(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=len(characters) + count, initial_alphabet=list(characters), show_progress=False
    )
    run_interruptibly(lambda: trained.train_from_iterator(spell(base, texts), trainer))
    ids = trained.get_vocab()
    learned = (b"".join(map(characters.__getitem__, merged)) for merged in sorted(ids, key=ids.__getitem__))
    new = dict.fromkeys(token for token in learned if token not in base.ranks)  # two merges may give the same token
    ranks = base.ranks | {token: rank for rank, token in enumerate(new, start=base.vocab_size)}
    return Tokenizer.build(f"{base.name}+{len(new)}", base.pattern, ranks, base.special_tokens)


def spell(base: Tokenizer, texts: Iterable[str]) -> Iterator[str]:
    """The words of each text that are several tokens, one character per token, with a space after each word."""
    pattern = regex.compile(base.pattern)

    @lru_cache(CACHED_WORDS)
    def spell_word(word: str) -> str:
        ids = base.encode_piece(word.encode())
        return "".join(chr(FIRST_CHARACTER + token) for token in ids) + " " if len(ids) > 1 else ""

    for text in texts:
        yield "".join(spell_word(word[0]) for word in pattern.finditer(text))
