"""Texts out of a prepared corpus."""

from typing import NamedTuple

import numpy as np

from mlm_dist.data.corpus import Corpus, Tokens
from mlm_dist.data.texts import Split
from mlm_dist.errors import UserError


class Passage(NamedTuple):
    """A text, found or generated, with the token ids that it was made of."""

    text: str
    tokens: list[int]


def documents(corpus: Corpus, split: Split) -> list[Tokens]:
    """The tokens of each document's part of a split, without the end token that closes it."""
    tokens = corpus.train if split == "train" else corpus.val
    ranges = [document[split] for document in corpus.manifest.documents]
    return [tokens[start : end - 1] for start, end in ranges if end > start]


def document_texts(corpus: Corpus, split: Split) -> list[str]:
    """The same as text."""
    return [corpus.tokenizer.decode(tokens.tolist()) for tokens in documents(corpus, split)]


def held_out_passages(corpus: Corpus, count: int, length: int, seed: int) -> list[Passage]:
    """Draw passages of `length` tokens from the held-out text, none of them over the end of a document.

    Raises:
        UserError: the held-out text does not have as many.
    """
    places = [(tokens, start) for tokens in documents(corpus, "val") for start in range(len(tokens) - length + 1)]
    if len(places) < count:
        raise UserError(
            f"{corpus.folder} holds out {len(places)} passages of {length} tokens, not {count}: ask for less"
        )
    drawn = np.random.default_rng(seed).choice(len(places), count, replace=False)
    found = [places[number][0][places[number][1] :][:length].tolist() for number in drawn]
    return [Passage(corpus.tokenizer.decode(tokens), tokens) for tokens in found]
