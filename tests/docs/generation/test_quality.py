import math

import numpy as np
import pytest

from judge import Judge
from mlm_dist.data.corpus import Corpus
from ngrams import Ngrams
from passages import Passage, validation_passages
from quality import Metrics, Row, copied, distinct, measure, repeated_ngrams, repeated_tokens, table


def test_distinct_ngrams_are_counted_over_all_texts() -> None:
    assert distinct([[1, 2, 1, 2], [1, 2, 3, 3]], 1) == 3 / 8
    assert distinct([[1, 2, 1, 2], [1, 2, 3, 3]], 2) == 4 / 6
    assert distinct([[1, 2, 1, 2], [1, 2, 3, 3]], 3) == 1


def test_a_token_is_repeated_if_it_is_among_the_32_before_it() -> None:
    assert repeated_tokens([[1, 2, 3, 1], [1, 1, 1, 1]]) == 4 / 8
    others = list(range(10, 41))
    assert repeated_tokens([[1, *others, 1]]) == 1 / 33
    assert repeated_tokens([[1, *others, 41, 1]]) == 0


def test_ngrams_are_repeated_within_one_text_only() -> None:
    assert repeated_ngrams([[1, 2, 3, 4, 5], [1, 2, 3, 4, 5]]) == 0
    assert repeated_ngrams([[7] * 8, [1, 2, 3, 4, 5, 6, 7, 8]]) == pytest.approx((4 / 5 + 0) / 2)


def test_ngrams_of_the_training_text_count_as_copied(corpus: Corpus, training_text: Ngrams) -> None:
    taken = np.asarray(corpus.train[100:116]).tolist()
    assert copied([taken], training_text) == 1
    assert copied([[*taken[:7], 0, *taken[8:]]], training_text) == 1 / 9
    assert copied([taken, [0] * 16], training_text) == 1 / 2


def test_a_set_of_texts_has_all_metrics(corpus: Corpus, judge: Judge, training_text: Ngrams) -> None:
    passages = validation_passages(corpus, 4, 30, seed=1)
    texts = [passage.tokens for passage in passages]
    nats = judge.nats([passage.text for passage in passages])
    found = measure(passages, judge, training_text)
    assert found.perplexity == pytest.approx(math.exp(sum(nats) / 120))
    assert found == Metrics(
        (distinct(texts, 1), distinct(texts, 2), distinct(texts, 3)),
        repeated_tokens(texts),
        repeated_ngrams(texts),
        found.perplexity,
        copied(texts, training_text),
    )


def test_the_perplexity_is_per_generated_token(judge: Judge, training_text: Ngrams) -> None:
    short = measure([Passage("The old man.", [5] * 10)], judge, training_text)
    long = measure([Passage("The old man.", [5] * 20)], judge, training_text)
    assert long.perplexity**2 == pytest.approx(short.perplexity)


def test_an_unknown_value_is_an_empty_cell() -> None:
    metrics = Metrics((0.5, 0.25, 1.0), 0.4, 0.0125, 55.55, 0.2)
    assert table({"a": Row(None, metrics), "b": Row(4.5, metrics)}).splitlines()[2:] == [
        "| a |  | 0.500 | 0.250 | 1.000 | 40.0% | 1.25% | 55.5 | 20.0% |",
        "| b | 4.500 | 0.500 | 0.250 | 1.000 | 40.0% | 1.25% | 55.5 | 20.0% |",
    ]
