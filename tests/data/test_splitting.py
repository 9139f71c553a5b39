"""The choice of the validation split, and the warnings about it."""

import dataclasses
import random
import statistics
from pathlib import Path

import numpy as np
import pytest

from mlm_dist.data.corpus import Corpus
from mlm_dist.data.preparation import SAMPLE_TEXT, prepare_corpus
from mlm_dist.data.splitting import TokenCounts, describe_validation, hold_out
from mlm_dist.texts.document_list import DocumentList, find_documents
from tests.conftest import convert_corpus

PARAGRAPHS = [text.strip() for text in SAMPLE_TEXT.read_text(encoding="utf-8").split("\n\n") if text.strip()]


def write_all(folder: Path, texts: list[str]) -> DocumentList:
    """Write texts into a folder, one file each."""
    folder.mkdir(exist_ok=True)
    for index, text in enumerate(texts):
        (folder / f"{index:04}.txt").write_text(text, encoding="utf-8")
    return find_documents([folder])


def validation_size(documents: DocumentList) -> int:
    return int((documents.sizes - documents.val_starts).sum())


def whole_validation_texts(documents: DocumentList) -> set[str]:
    """The texts of the documents that are wholly in the validation split."""
    return texts_where(documents, documents.val_starts == 0)


def texts_where(documents: DocumentList, is_chosen: np.ndarray) -> set[str]:
    """The texts of some documents, each of which is a file."""
    return {documents.files[index].path.read_text(encoding="utf-8") for index in np.flatnonzero(is_chosen)}


@pytest.mark.parametrize("fraction", [0.02, 0.05, 0.3, 0.9])
def test_short_documents_are_held_out_whole_up_to_the_fraction(tmp_path: Path, fraction: float) -> None:
    texts = [random.Random(n).choice(PARAGRAPHS)[: n % 300 + 20] for n in range(1000)]
    documents = hold_out(write_all(tmp_path / "texts", texts), fraction)
    assert ((documents.val_starts == 0) | (documents.val_starts == documents.sizes)).all()
    actual = validation_size(documents) / documents.size
    assert abs(actual - fraction) < 0.002


def test_the_validation_split_does_not_depend_on_names_or_order(tmp_path: Path) -> None:
    texts = [f"{i} {text}" for i, text in enumerate(PARAGRAPHS)]
    first = hold_out(write_all(tmp_path / "one", texts), 0.1)
    random.Random(1).shuffle(texts)
    again = hold_out(write_all(tmp_path / "two", texts), 0.1)
    assert whole_validation_texts(first) == whole_validation_texts(again) != set()
    assert list(again.names()) == sorted(again.names())


def test_a_new_document_hardly_changes_the_validation_split(tmp_path: Path) -> None:
    texts = [f"{i} {text}" for i, text in enumerate(PARAGRAPHS)]
    before = whole_validation_texts(hold_out(write_all(tmp_path / "texts", texts), 0.1))
    after = whole_validation_texts(hold_out(write_all(tmp_path / "texts", [*texts, "One more paragraph."]), 0.1))
    assert len(before ^ after) <= 2


def test_copies_of_a_document_are_in_the_same_split(tmp_path: Path) -> None:
    texts = [text for text in PARAGRAPHS for _ in range(3)]
    documents = hold_out(write_all(tmp_path / "texts", texts), 0.2)
    trained = texts_where(documents, documents.val_starts > 0)
    assert whole_validation_texts(documents)
    assert not whole_validation_texts(documents) & trained


def test_the_ends_of_long_documents_and_whole_short_ones_are_held_out(tmp_path: Path) -> None:
    long = SAMPLE_TEXT.read_text(encoding="utf-8")
    texts = [long, *PARAGRAPHS]
    documents = hold_out(write_all(tmp_path / "texts", texts), 0.1)
    assert documents.val_starts[0] == round(documents.sizes[0] * 0.9)
    starts, sizes = documents.val_starts[1:], documents.sizes[1:]
    assert 0 < (starts == 0).sum() < len(starts)
    assert ((starts == 0) | (starts == sizes)).all()


def test_a_short_document_among_long_ones_is_training_text(tmp_path: Path) -> None:
    long = SAMPLE_TEXT.read_text(encoding="utf-8")
    documents = hold_out(write_all(tmp_path / "texts", [long, long + "more", "Short."]), 0.1)
    assert documents.val_starts[2] == documents.sizes[2]


def test_the_end_of_a_single_short_document_is_held_out(tmp_path: Path) -> None:
    alone = hold_out(write_all(tmp_path / "texts", ["0123456789" * 10]), 0.25)
    assert (alone.sizes.tolist(), alone.val_starts.tolist()) == ([100], [75])


def test_a_fraction_of_0_holds_out_nothing(tmp_path: Path) -> None:
    assert validation_size(hold_out(write_all(tmp_path / "texts", PARAGRAPHS), 0.0)) == 0


def test_validation_paragraphs_are_as_long_as_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    documents = hold_out(write_all(tmp_path / "texts", PARAGRAPHS), 0.1)
    prepare_corpus(documents, tmp_path / "out", "bpe", vocab_size=300)
    index = Corpus.open(tmp_path / "out").documents()
    val, train = ([d.count(split) for d in index if d.count(split)] for split in ("val", "train"))
    assert statistics.median(val) > statistics.median(train) / 2
    assert capsys.readouterr().err == ""


def test_a_version_1_corpus_is_read_with_a_warning_about_short_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = write_all(tmp_path / "a", PARAGRAPHS)
    tails = dataclasses.replace(documents, val_starts=np.rint(documents.sizes * 0.95).astype(np.int64))
    prepare_corpus(tails, tmp_path / "short", "bpe", vocab_size=300)
    convert_corpus(tmp_path / "short", version=1)
    assert Corpus.open(tmp_path / "short").manifest.version == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "short: its validation text is the ends of documents, half of them shorter than" in lines[0]
    prepare_corpus(hold_out(find_documents([SAMPLE_TEXT]), 0.1), tmp_path / "long", "bpe", vocab_size=300)
    convert_corpus(tmp_path / "long", version=1)
    Corpus.open(tmp_path / "long")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("fractions", "words"),
    [
        ([1.0, 0.0, 0.0], "1 whole document"),
        ([1.0, 0.0, 1.0], "2 whole documents"),
        ([0.5, 0.0, 0.0], "the ends of 1 document"),
        ([0.5, 0.5, 0.0], "the ends of 2 documents"),
        ([0.5, 0.5, 1.0], "the ends of 2 documents and 1 whole one"),
        ([0.5, 1.0, 1.0, 0.0], "the ends of 1 document and 2 whole ones"),
    ],
)
def test_the_validation_split_is_described_in_words(tmp_path: Path, fractions: list[float], words: str) -> None:
    found = write_all(tmp_path / "texts", [f"{index} some words to read " * 9 for index in range(len(fractions))])
    val_starts = np.rint(found.sizes * (1 - np.array(fractions))).astype(np.int64)
    documents = dataclasses.replace(found, val_starts=val_starts)
    prepare_corpus(documents, tmp_path / "out", "bpe", vocab_size=300)
    assert describe_validation(Corpus.open(tmp_path / "out").documents()) == words


def counts_of(train: np.ndarray, val: np.ndarray) -> TokenCounts:
    counts = TokenCounts(100)
    for part in np.array_split(train, 7):
        counts.add("train", part)
    counts.add("val", val)
    return counts


def random_tokens(seed: int, size: int, low: int, high: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, size, dtype=np.uint32)


def test_validation_text_unlike_the_training_text_gives_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    counts_of(random_tokens(1, 20_000, 0, 60), random_tokens(2, 2_000, 0, 60)).warn()
    assert capsys.readouterr().err == ""
    unlike = counts_of(random_tokens(1, 20_000, 0, 60), random_tokens(2, 2_000, 50, 100))
    unlike.warn()
    assert "the validation text is unlike the training text (less likely by" in capsys.readouterr().err
    # 18,000 training tokens outside the sample are uniform over 60 ids; 80 % of the validation tokens have other ids.
    assert unlike.difference() == pytest.approx(0.8 * np.log(18_000 / 60), rel=0.05)


def test_a_small_validation_split_gives_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    counts_of(random_tokens(1, 20_000, 0, 60), random_tokens(2, 30, 50, 100)).warn()
    err = capsys.readouterr().err
    assert err.startswith("mlm_dist: the validation split has only 30 tokens, too few to measure a loss reliably")
    assert err.count("\n") == 1
    counts_of(random_tokens(1, 2_000, 0, 60), random_tokens(2, 30, 50, 100)).warn()  # the whole text is small
    counts_of(random_tokens(1, 20_000, 0, 60), random_tokens(2, 0, 50, 100)).warn()  # no validation split
    assert capsys.readouterr().err == ""
