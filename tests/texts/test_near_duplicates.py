"""Documents that are nearly the same are found, and others are not."""

import random
import sys

import numpy as np
import pytest

from mlm_dist.data.preparation import SAMPLE_TEXT
from mlm_dist.errors import UserError
from mlm_dist.texts import near_duplicates
from mlm_dist.texts.near_duplicates import NearDuplicates

WORDS = SAMPLE_TEXT.read_text(encoding="utf-8").split()


def random_words(rng: random.Random, count: int) -> list[str]:
    return [rng.choice(WORDS) for _ in range(count)]


def altered(rng: random.Random, words: list[str]) -> list[str]:
    """The words with one in twenty replaced or left out."""
    changed = [rng.choice(WORDS) if rng.random() < 0.025 else word for word in words]
    return [word for word in changed if rng.random() > 0.025]


def find(texts: list[str]) -> np.ndarray:
    near = NearDuplicates()
    for text in texts:
        near.add(text.encode())
        near.end_document()
    return near.find()


@pytest.mark.parametrize("batch_bytes", [1 << 13, 1 << 20])
def test_planted_near_duplicates_are_found_and_others_are_not(
    batch_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(near_duplicates, "BATCH_BYTES", batch_bytes)
    near_duplicates.powers_of_base.cache_clear()
    rng = random.Random(1)
    boilerplate = random_words(rng, 60)
    # Documents of 60 to 600 words. A third of them begin with the same words, but are not nearly the same.
    originals = [boilerplate * (index % 3 == 0) + random_words(rng, rng.randint(60, 600)) for index in range(900)]
    copies = [altered(rng, words) for words in rng.sample(originals, 300)]
    texts = [(" ".join(words), False) for words in originals] + [(" ".join(words), True) for words in copies]
    later = texts[900:]
    rng.shuffle(later)
    texts = texts[:900] + later
    is_near = find([text for text, _ in texts])
    is_planted = np.array([planted for _, planted in texts])
    assert (is_near & is_planted).sum() / is_planted.sum() >= 0.95  # recall
    assert (is_near & is_planted).sum() / is_near.sum() >= 0.99  # precision
    near_duplicates.powers_of_base.cache_clear()


def test_the_first_of_several_copies_is_kept() -> None:
    rng = random.Random(2)
    first, other = random_words(rng, 200), random_words(rng, 200)
    texts = [" ".join(words) for words in (first, other, altered(rng, first), first, altered(rng, first))]
    assert find(texts).tolist() == [False, False, True, True, True]


def test_a_long_document_is_signed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(3)
    words = random_words(rng, 20_000)
    texts = [" ".join(words), "short one", " ".join(altered(rng, words)), "another " + " ".join(words)]
    expected = find(texts)
    monkeypatch.setattr(near_duplicates, "BATCH_BYTES", 1000)
    assert find(texts).tolist() == expected.tolist() == [False, False, True, True]


def test_white_space_and_empty_lists_are_no_fault() -> None:
    assert find([" ", "one", "\n"]).tolist() == [False, False, True]
    assert find([]).tolist() == []


def test_a_missing_rensa_is_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(UserError, match=r"run `pip install 'mlm_dist\[dedup\]'`"):
        NearDuplicates()
