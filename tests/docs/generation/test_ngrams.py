import itertools
import math
from collections import Counter

import numpy as np
import pytest

from mlm_dist.data.corpus import Corpus
from ngrams import NEVER_SEEN, NgramModel, Ngrams
from passages import documents

A, B, C, END = range(4)
TEXT = [A, B, C, A, B, A, END, B, C, B, B, A]


def count_ngrams(text: list[int], n: int) -> Counter[tuple[int, ...]]:
    ngrams = zip(*(text[first:] for first in range(n)), strict=False)
    return Counter(ngram for ngram in ngrams if END not in ngram)


def test_the_ngrams_of_a_text_are_counted() -> None:
    ngrams = Ngrams(np.array(TEXT), 4, END, 4)
    for n, table in enumerate(ngrams.tables, start=1):
        expected, longer = count_ngrams(TEXT, n), count_ngrams(TEXT, n + 1)
        found = {ngram: ngrams.index(np.array(ngram)) for ngram in expected}
        assert sorted(found.values()) == list(range(len(table.keys)))
        for ngram, index in found.items():
            assert table.counts[index] == expected[ngram]
            if n < 4:
                assert table.lefts[index] == sum(ngram == other[1:] for other in longer)


def test_an_ngram_that_is_not_in_the_text_is_not_found() -> None:
    ngrams = Ngrams(np.array(TEXT), 4, END, 4)
    *_, triples, fours = ngrams.find(np.array([A, B, C, A, A, B, C]))
    assert (triples == NEVER_SEEN).tolist() == [False, False, True, True, False]
    assert (fours == NEVER_SEEN).tolist() == [False, True, True, True]
    assert ngrams.index(np.array([A, END])) == NEVER_SEEN
    assert ngrams.index(np.array([A, B, A, B])) == NEVER_SEEN


def kneser_ney(order: int, context: tuple[int, ...], token: int) -> float:
    """The interpolated Kneser-Ney probability, computed from its definition."""

    def counts(n: int) -> Counter[tuple[int, ...]]:
        return count_ngrams(TEXT, n) if n == order else Counter(ngram[1:] for ngram in count_ngrams(TEXT, n + 1))

    probability = 1 / 3
    for n in range(1, min(order, len(context) + 1) + 1):
        of_n = counts(n)
        suffix = context[len(context) - n + 1 :]
        after = {ngram: count for ngram, count in of_n.items() if ngram[:-1] == suffix}
        if after:
            once, twice = (sum(count == times for count in of_n.values()) for times in (1, 2))
            discount = once / (once + 2 * twice) if once else 0.5
            own = max(after.get((*suffix, token), 0) - discount, 0)
            probability = (own + discount * len(after) * probability) / sum(after.values())
    return probability


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_probabilities_are_those_of_the_definition(order: int) -> None:
    model = NgramModel(Ngrams(np.array(TEXT), 4, END, 4), order, [END])
    document = (B, C, A, B, B, A, A, C, C, C)
    expected = [kneser_ney(order, document[:i], token) for i, token in enumerate(document)]
    assert model.probabilities(np.array(document)) == pytest.approx(expected)
    assert model.nats([np.array(document)]) == pytest.approx(-sum(map(math.log, expected)) / len(document))


@pytest.mark.parametrize("order", [1, 3, 5])
def test_probabilities_of_all_next_tokens_sum_to_one(corpus: Corpus, training_text: Ngrams, order: int) -> None:
    model = NgramModel(training_text, order, corpus.tokenizer.ids_without_text)
    (validation,) = documents(corpus, "val")
    generator = np.random.default_rng(1)
    seen = [corpus.train[start : start + length] for start in range(0, 900, 100) for length in (0, 1, 2, 4, 7)]
    unseen = [generator.choice(corpus.tokenizer.end_id, 4) for _ in range(20)]
    for context in [*seen, *unseen, validation[:50]]:
        probabilities = model.next_probabilities(np.array(context))
        assert probabilities.sum() == pytest.approx(1)
        assert (probabilities[: corpus.tokenizer.end_id] > 0).all()
        assert (probabilities[corpus.tokenizer.ids_without_text] == 0).all()


def test_next_probabilities_agree_with_those_of_a_document(corpus: Corpus, training_text: Ngrams) -> None:
    model = NgramModel(training_text, 5, corpus.tokenizer.ids_without_text)
    tokens = documents(corpus, "val")[0][:60]
    one_by_one = [model.next_probabilities(tokens[:i])[token] for i, token in enumerate(tokens)]
    assert model.probabilities(tokens) == pytest.approx(one_by_one)


def test_longer_contexts_predict_validation_text_better(corpus: Corpus, training_text: Ngrams) -> None:
    validation = documents(corpus, "val")
    orders = [NgramModel(training_text, order, corpus.tokenizer.ids_without_text) for order in (1, 2, 3)]
    unigram, bigram, trigram = (model.nats(validation) for model in orders)
    assert trigram < bigram < unigram < math.log(corpus.tokenizer.vocab_size)


def test_tokens_are_sampled_in_proportion_to_their_probability() -> None:
    model = NgramModel(Ngrams(np.array(TEXT), 4, END, 2), 2, [END])
    tokens = model.generate(4000, [1, 0])
    for context in (A, B, C):
        after = [token for before, token in itertools.pairwise(tokens) if before == context]
        fractions = np.bincount(after, minlength=4) / len(after)
        assert fractions == pytest.approx(model.next_probabilities(np.array([context])), abs=0.05)


def test_the_same_seed_samples_the_same_tokens(corpus: Corpus, training_text: Ngrams) -> None:
    model = NgramModel(training_text, 5, corpus.tokenizer.ids_without_text)
    tokens = model.generate(30, [1, 0])
    assert len(tokens) == 30
    assert tokens == model.generate(30, [1, 0])
    assert tokens != model.generate(30, [1, 1])
