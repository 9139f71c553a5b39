"""What the texts of a corpus are like, counted in bounded memory."""

import json
import random
from pathlib import Path

import pytest

from mlm_dist.data import text_report
from mlm_dist.data.corpus import Corpus, Manifest
from mlm_dist.data.text_report import LineCounts, line_hashes
from tests.conftest import verb

LINES = [f"The line with number {number} is long enough." for number in range(100)]


def prepare(tmp_path: Path, records: list[str], *options: object, val: list[str] | None = None) -> Manifest:
    """Prepare records, and validation records if given."""
    paths = []
    for name, texts in (("train", records), ("val", val or [])):
        if texts:
            paths.append(tmp_path / f"{name}.jsonl")
            paths[-1].write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
    given = [paths[0], *(["--val", paths[1]] if val else ["--val_fraction", 0])]
    result = verb("prepare", *given, "--out", out, "--tokenizer", "bpe", "--vocab_size", 270, *options)
    assert result.returncode == 0, result.stderr
    corpus = Corpus.open(out)
    assert corpus.manifest.documents == len(corpus.documents())
    return corpus.manifest


def test_repeated_documents_and_lines_are_counted(tmp_path: Path) -> None:
    records = ["\n".join(LINES[:10]), "\n".join(LINES[10:20]), "\n".join(LINES[:10]), f"  {LINES[0]}  \nYes.\nYes.\n"]
    texts = prepare(tmp_path, records).texts
    assert texts is not None
    assert texts["duplicate_documents"] == 1
    assert texts["near_duplicate_documents"] is None
    assert texts["lines"] == 31
    assert texts["duplicate_lines"] == pytest.approx(11 / 31, abs=1e-6)
    assert texts["validation_lines_in_training"] == 0


def test_validation_lines_in_the_training_text_are_counted(tmp_path: Path) -> None:
    texts = prepare(tmp_path, ["\n".join(LINES[:50])], val=["\n".join(LINES[40:60])]).texts
    assert texts is not None
    assert texts["validation_lines_in_training"] == 0.5
    assert texts["duplicate_lines"] == 0


def test_characters_per_token_are_those_of_the_corpus(tmp_path: Path) -> None:
    manifest = prepare(tmp_path, ["né" * 50] * 3)
    assert manifest.texts is not None
    assert manifest.texts["characters_per_token"] == pytest.approx(300 / manifest.tokens["train"], abs=1e-4)


@pytest.mark.parametrize(("options", "kept"), [((), [0, 1]), (("--near_duplicates",), [0])])
def test_duplicates_are_dropped(options: tuple[str, ...], kept: list[int], tmp_path: Path) -> None:
    words = " ".join(LINES)
    records = [words, words.replace("number 50", "number fifty"), words, words]
    manifest = prepare(tmp_path, records, "--drop_duplicates", *options)
    assert manifest.documents == len(kept)
    assert manifest.texts is not None
    assert manifest.texts["duplicate_documents"] == 2
    assert manifest.texts["dropped_documents"] == 4 - len(kept)
    assert manifest.texts["near_duplicate_documents"] == (1 if options else None)
    expected = prepare(tmp_path, [records[index] for index in kept])
    assert (manifest.tokens, manifest.sha256["train"]) == (expected.tokens, expected.sha256["train"])


def test_lines_beyond_the_limit_are_counted_from_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_report, "MOST_LINES", 1000)
    rng = random.Random(1)
    lines = [f"This is the line with number {number}" for number in range(30_000)]
    lines += rng.choices(lines, k=30_000)
    rng.shuffle(lines)
    counts = LineCounts()
    for start in range(0, len(lines), 100):
        counts.add(line_hashes("\n".join(lines[start : start + 100])))
        assert len(counts.hashes) + sum(map(len, counts.waiting)) < 2000
    counts.collect()
    assert counts.total == 60_000
    assert counts.level > 0
    repeated = 1 - len(counts.hashes) / counts.counts.sum()
    assert repeated == pytest.approx(0.5, abs=0.05)


def test_the_hash_of_a_line_is_the_same_in_every_process() -> None:
    # A sample must not depend on the process.
    assert line_hashes(" The same line, always.\r\nshort").tolist() == [17748503128121495025]
