"""Documents and passages of a prepared corpus."""

from typing import NamedTuple

import numpy as np

from mlm_dist.data.corpus import Corpus
from mlm_dist.data.shards import Tokens
from mlm_dist.errors import UserError
from mlm_dist.texts.finding import Split


class Passage(NamedTuple):
    """A text, from a corpus or generated, with the token ids that it was decoded from."""

    text: str
    tokens: list[int]


def documents(corpus: Corpus, split: Split) -> list[Tokens]:
    """The tokens of each document in a split, without the end token after them."""
    tokens = corpus.train if split == "train" else corpus.val
    ranges = [getattr(document, split) for document in corpus.documents() if document.count(split)]
    return [np.asarray(tokens[range_.start : range_.stop - 1]) for range_ in ranges]


def document_texts(corpus: Corpus, split: Split) -> list[str]:
    """The text of each document in a split."""
    return [corpus.tokenizer.decode(tokens.tolist()) for tokens in documents(corpus, split)]


def validation_passages(corpus: Corpus, count: int, length: int, seed: int) -> list[Passage]:
    """Sample passages of `length` tokens from the validation text. No passage crosses the end of a document.

    Raises:
        UserError: the validation text has fewer than `count` such passages.
    """
    starts = [(tokens, start) for tokens in documents(corpus, "val") for start in range(len(tokens) - length + 1)]
    if len(starts) < count:
        raise UserError(
            f"{corpus.folder} has {len(starts)} validation passages of {length} tokens, but --samples is {count}: "
            f"lower it"
        )
    sampled = [starts[i] for i in np.random.default_rng(seed).choice(len(starts), count, replace=False)]
    passages = [tokens[start : start + length].tolist() for tokens, start in sampled]
    return [Passage(corpus.tokenizer.decode(tokens), tokens) for tokens in passages]
