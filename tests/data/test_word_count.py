"""Words are counted as in the text, whatever the tokenizer."""

import numpy as np
import pytest

from mlm_dist.data import word_count
from mlm_dist.data.corpus import Corpus
from mlm_dist.data.word_count import words_per_token


def words_of(corpus: Corpus) -> float:
    """The words of the training text per token, from its bytes. `<|endoftext|>` separates words."""
    ids = np.array(corpus.train).tolist()
    content = b"".join(corpus.tokenizer.encoding.decode_single_token_bytes(token) for token in ids)
    return len(content.replace(b"<|endoftext|>", b"\n").split()) / len(ids)


def test_the_words_of_a_corpus_are_those_that_white_space_separates(corpus: Corpus) -> None:
    assert words_per_token(corpus.train, corpus.tokenizer) == words_of(corpus)
    assert 0.1 < words_of(corpus) < 1


def test_blocks_make_no_difference(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_count, "BLOCK", 7)
    monkeypatch.setattr(word_count, "MOST_BLOCKS", len(corpus.train))
    assert words_per_token(corpus.train, corpus.tokenizer) == words_of(corpus)


def test_of_a_long_text_evenly_spaced_blocks_are_counted(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_count, "BLOCK", 16)
    monkeypatch.setattr(word_count, "MOST_BLOCKS", 64)
    assert len(corpus.train) > 5 * 16 * 64
    estimate = words_per_token(corpus.train, corpus.tokenizer)
    assert estimate != words_of(corpus)
    assert estimate == pytest.approx(words_of(corpus), rel=0.1)


def test_text_of_white_space_has_no_words(corpus: Corpus) -> None:
    spaces = np.tile(corpus.tokenizer.encode(" \n \n"), 3)
    assert words_per_token(spaces, corpus.tokenizer) == 0
    assert words_per_token(spaces[:0], corpus.tokenizer) == 0
