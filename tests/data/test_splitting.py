"""What is held out, and whether it is enough to measure on."""

import json
import random
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mlm_dist.data.corpus import Corpus
from mlm_dist.data.preparation import SAMPLE_TEXT, prepare_corpus
from mlm_dist.data.splitting import TokenCounts, describe_held_out, hold_out
from mlm_dist.data.texts import Document, find_documents

PARAGRAPHS = [text.strip() for text in SAMPLE_TEXT.read_text(encoding="utf-8").split("\n\n") if text.strip()]


def write_all(folder: Path, texts: list[str]) -> list[Document]:
    """Write texts into a folder, a file each."""
    folder.mkdir(exist_ok=True)
    for number, text in enumerate(texts):
        (folder / f"{number:04}.txt").write_text(text, encoding="utf-8")
    return find_documents([folder])


def held_out_size(documents: list[Document]) -> int:
    return sum(document.size - document.val_start for document in documents)


def whole(documents: list[Document]) -> set[str]:
    """The texts that are held out whole."""
    return {document.path.read_text(encoding="utf-8") for document in documents if document.val_start == 0}


@pytest.mark.parametrize("fraction", [0.02, 0.05, 0.3, 0.9])
def test_short_documents_are_held_out_whole_and_come_to_their_share(tmp_path: Path, fraction: float) -> None:
    texts = [random.Random(n).choice(PARAGRAPHS)[: n % 300 + 20] for n in range(1000)]
    documents = hold_out(write_all(tmp_path / "texts", texts), fraction)
    assert all(document.val_start in (0, document.size) for document in documents)
    share = held_out_size(documents) / sum(document.size for document in documents)
    assert abs(share - fraction) < 0.002


def test_what_is_held_out_depends_neither_on_names_nor_on_the_order_of_files(tmp_path: Path) -> None:
    texts = [f"{number} {text}" for number, text in enumerate(PARAGRAPHS)]
    first = hold_out(write_all(tmp_path / "one", texts), 0.1)
    random.Random(1).shuffle(texts)
    again = hold_out(write_all(tmp_path / "two", texts), 0.1)
    assert whole(first) == whole(again) != set()
    assert [document.name for document in again] == sorted(document.name for document in again)


def test_a_new_document_changes_little_of_what_is_held_out(tmp_path: Path) -> None:
    texts = [f"{number} {text}" for number, text in enumerate(PARAGRAPHS)]
    before = whole(hold_out(write_all(tmp_path / "texts", texts), 0.1))
    after = whole(hold_out(write_all(tmp_path / "texts", [*texts, "One more paragraph."]), 0.1))
    assert len(before ^ after) <= 2


def test_copies_of_a_document_are_on_one_side(tmp_path: Path) -> None:
    texts = [text for text in PARAGRAPHS for _ in range(3)]
    documents = hold_out(write_all(tmp_path / "texts", texts), 0.2)
    trained = {document.path.read_text(encoding="utf-8") for document in documents if document.val_start}
    assert whole(documents)
    assert not whole(documents) & trained


def test_the_ends_of_long_documents_are_held_out_beside_short_ones(tmp_path: Path) -> None:
    long = SAMPLE_TEXT.read_text(encoding="utf-8")
    texts = [long, *PARAGRAPHS]
    first, *others = hold_out(write_all(tmp_path / "texts", texts), 0.1)
    assert first.val_start == round(first.size * 0.9)
    assert {document.val_start == 0 for document in others} == {True, False}
    assert all(document.val_start in (0, document.size) for document in others)


def test_a_short_document_among_long_ones_is_trained_on(tmp_path: Path) -> None:
    long = SAMPLE_TEXT.read_text(encoding="utf-8")
    *_, short = hold_out(write_all(tmp_path / "texts", [long, long + "more", "Short."]), 0.1)
    assert short.val_start == short.size


def test_where_only_the_ends_of_short_documents_can_be_held_out_they_are(tmp_path: Path) -> None:
    [alone] = hold_out(write_all(tmp_path / "texts", ["0123456789" * 10]), 0.25)
    assert (alone.size, alone.val_start) == (100, 75)


def test_without_a_fraction_nothing_is_held_out(tmp_path: Path) -> None:
    assert held_out_size(hold_out(write_all(tmp_path / "texts", PARAGRAPHS), 0.0)) == 0


def test_held_out_paragraphs_are_no_scraps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    documents = hold_out(write_all(tmp_path / "texts", PARAGRAPHS), 0.1)
    manifest = prepare_corpus(documents, tmp_path / "out", "bpe", vocab_size=300)
    lengths = [d["val"][1] - d["val"][0] for d in manifest.documents if d["val"][1] > d["val"][0]]
    usual = [d["train"][1] - d["train"][0] for d in manifest.documents if d["train"][1] > d["train"][0]]
    assert statistics.median(lengths) > statistics.median(usual) / 2
    Corpus.open(tmp_path / "out")
    assert capsys.readouterr().err == ""


def as_earlier_versions_prepared(folder: Path) -> None:
    """Make a corpus one of format version 1."""
    content = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
    del content["tokenizer_sha256"]
    (folder / "corpus.json").write_text(json.dumps(content | {"version": 1}), encoding="utf-8")


def test_an_earlier_corpus_is_read_and_tells_of_scraps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tails = [Document(d.name, d.path, d.size, round(d.size * 0.95)) for d in write_all(tmp_path / "a", PARAGRAPHS)]
    prepare_corpus(tails, tmp_path / "scraps", "bpe", vocab_size=300)
    as_earlier_versions_prepared(tmp_path / "scraps")
    assert Corpus.open(tmp_path / "scraps").manifest.version == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "scraps: its held-out text is the ends of documents, half of them shorter than" in lines[0]
    prepare_corpus(hold_out(find_documents([SAMPLE_TEXT]), 0.1), tmp_path / "long", "bpe", vocab_size=300)
    as_earlier_versions_prepared(tmp_path / "long")
    Corpus.open(tmp_path / "long")
    assert capsys.readouterr().err == ""


def starts(*fractions: float) -> Callable[[int], list[int]]:
    return lambda size: [round(size * (1 - fraction)) for fraction in fractions]


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
def test_it_is_told_what_is_held_out(tmp_path: Path, fractions: list[float], words: str) -> None:
    found = write_all(tmp_path / "texts", [f"{number} some words to read " * 9 for number in range(len(fractions))])
    documents = [
        Document(d.name, d.path, d.size, round(d.size * (1 - fraction)))
        for d, fraction in zip(found, fractions, strict=True)
    ]
    assert describe_held_out(prepare_corpus(documents, tmp_path / "out", "bpe", vocab_size=300)) == words


def counts_of(train: np.ndarray, val: np.ndarray) -> TokenCounts:
    counts = TokenCounts(100)
    for part in np.array_split(train, 7):
        counts.add("train", part)
    counts.add("val", val)
    return counts


def draw_tokens(seed: int, size: int, low: int, high: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, size, dtype=np.uint32)


def test_held_out_text_unlike_the_rest_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    counts_of(draw_tokens(1, 20_000, 0, 60), draw_tokens(2, 2_000, 0, 60)).warn()
    assert capsys.readouterr().err == ""
    unlike = counts_of(draw_tokens(1, 20_000, 0, 60), draw_tokens(2, 2_000, 50, 100))
    unlike.warn()
    assert "the held-out text is unlike the rest (its words are" in capsys.readouterr().err
    # A tenth of the tokens is predicted by the others, whose frequencies are those of 60 tokens alike.
    assert unlike.difference() == pytest.approx(0.8 * np.log(18_000 / 60), rel=0.05)


def test_little_held_out_text_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    counts_of(draw_tokens(1, 20_000, 0, 60), draw_tokens(2, 30, 50, 100)).warn()
    err = capsys.readouterr().err
    assert err.startswith("mlm_dist: only 30 tokens are held out, too few to measure a loss well")
    assert err.count("\n") == 1
    counts_of(draw_tokens(1, 2_000, 0, 60), draw_tokens(2, 30, 50, 100)).warn()  # a text too short for more
    counts_of(draw_tokens(1, 20_000, 0, 60), draw_tokens(2, 0, 50, 100)).warn()  # as was asked for
    assert capsys.readouterr().err == ""
