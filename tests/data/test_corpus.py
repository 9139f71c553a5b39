"""Prepared corpora are read as written; damaged ones are refused."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlm_dist.data.corpus import FORMAT_VERSION, MANIFEST, Corpus, Manifest, token_dtype
from mlm_dist.data.rows import TrainingRows
from mlm_dist.data.sampler import GlobalBatchSampler, Selection
from mlm_dist.errors import UserError


@pytest.mark.parametrize(
    ("vocab_size", "dtype"),
    [(2, "<u2"), (300, "<u2"), (50258, "<u2"), (65536, "<u2"), (65537, "<u4"), (100278, "<u4"), (200020, "<u4")],
)
def test_token_ids_have_16_bits_if_the_vocabulary_allows(vocab_size: int, dtype: str) -> None:
    assert token_dtype(vocab_size) == np.dtype(dtype)
    assert np.iinfo(token_dtype(vocab_size)).max >= vocab_size - 1


def test_token_ids_are_little_endian() -> None:
    assert np.array([0x0102], dtype=token_dtype(300)).tobytes() == b"\x02\x01"
    assert np.array([0x01020304], dtype=token_dtype(1 << 30)).tobytes() == b"\x04\x03\x02\x01"


def test_a_prepared_corpus_can_be_opened(corpus: Corpus) -> None:
    assert corpus.manifest.version == FORMAT_VERSION
    assert (len(corpus.train), len(corpus.val)) == (corpus.manifest.tokens["train"], corpus.manifest.tokens["val"])
    assert corpus.tokenizer.vocab_size == corpus.manifest.vocab_size == 300
    text = "".join(corpus.tokenizer.decode(np.asarray(tokens[:-1])) for tokens in (corpus.train, corpus.val))
    assert text.startswith("The Keeper of Hollin\n")


def test_token_files_are_memory_mapped(corpus: Corpus) -> None:
    assert isinstance(corpus.train, np.memmap)
    assert isinstance(corpus.val, np.memmap)
    assert not corpus.train.flags.writeable


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("block_size", [1, 16, 64, 1000])
def test_rows_are_the_tokens_in_order_without_an_incomplete_row(corpus: Corpus, split: Any, block_size: int) -> None:
    tokens = corpus.train if split == "train" else corpus.val
    rows = corpus.rows(split, block_size)
    assert isinstance(rows, np.ndarray)
    assert rows.shape == (len(tokens) // block_size, block_size)
    assert np.array_equal(rows.ravel(), tokens[: rows.size])
    assert len(tokens) - rows.size < block_size
    assert np.shares_memory(rows, tokens)


def test_fewer_tokens_than_a_row_give_no_rows(corpus: Corpus) -> None:
    assert corpus.rows("val", len(corpus.val) + 1).shape == (0, len(corpus.val) + 1)


def edited(**changes: Any) -> Callable[[Path], None]:
    """Change entries of corpus.json; None removes one."""

    def edit(folder: Path) -> None:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8")) | changes
        content = {key: value for key, value in content.items() if value is not None}
        (folder / MANIFEST).write_text(json.dumps(content), encoding="utf-8")

    return edit


def rewritten(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Change the bytes of a file."""

    def rewrite(folder: Path) -> None:
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return rewrite


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def as_fifo(name: str) -> Callable[[Path], None]:
    """Replace a file by a FIFO."""

    def replace(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return replace


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without(MANIFEST), r"corpus\.json: No such file.*prepare"),
        (rewritten(MANIFEST, lambda content: b""), r"corpus\.json: not .* \(it is not JSON at line 1, column 1\)"),
        (rewritten(MANIFEST, lambda content: content[:-20]), r"corpus\.json: not a corpus description"),
        (rewritten(MANIFEST, lambda content: b"\xff" + content), r"corpus\.json: not .* \(it is not UTF-8 at byte 0\)"),
        (rewritten(MANIFEST, lambda content: b"[]"), r"corpus\.json: not a corpus description"),
        (edited(version=FORMAT_VERSION + 1), r"corpus\.json: format version 4 instead of 3"),
        (edited(documents=[{"name": "a", "train": [0, 1], "val": [0, 1]}]), r"corpus\.json: not a corpus description"),
        (edited(documents=-1), r"corpus\.json: not a corpus description"),
        (edited(documents=2), r"documents\.bin: 24 bytes, but corpus\.json says 48"),
        (edited(documents=0), r"documents\.bin: 24 bytes, but corpus\.json says 0"),
        (edited(sha256={"train": "a", "val": "b"}), r"corpus\.json: not a corpus description"),
        (edited(tokenizer_sha256="0"), r"tokenizer: it was changed after the corpus was prepared"),
        (edited(version=None), r"corpus\.json: not .* \(a value is missing, unknown or of the wrong type\)"),
        (edited(tokens=None), r"corpus\.json: not a corpus description"),
        (edited(tokens={"train": 1}), r"corpus\.json: not a corpus description"),
        (edited(tokens={"train": None, "val": None}), r"corpus\.json: not a corpus description"),
        (rewritten(MANIFEST, lambda content: b"[" * 100_000), r"corpus\.json: not .* nested too deeply"),
        (rewritten(MANIFEST, lambda content: b'{"version": ' + b"9" * 5000), r"corpus\.json: not .* too many digits"),
        (edited(version=[["x" * 10_000]]), r"corpus\.json: format version \[\['xxx.{1,30}'\]\] instead of 3"),
        (edited(tokens={"train": 10**4299, "val": 1}), r"corpus\.json: not a corpus description"),
        (as_fifo(MANIFEST), r"corpus\.json: it is a FIFO, not a regular file"),
        (as_fifo("train.bin"), r"train\.bin: it is a FIFO, not a regular file"),
        (as_fifo("tokenizer/ranks.tiktoken"), r"ranks\.tiktoken: it is a FIFO, not a regular file"),
        (as_fifo("tokenizer/encoding.json"), r"encoding\.json: it is a FIFO, not a regular file"),
        (edited(vocab_size=301), r"its tokenizer is not the one in corpus\.json"),
        (edited(mask_id=5), r"its tokenizer is not the one in corpus\.json"),
        (without("train.bin"), r"train\.bin: No such file"),
        (rewritten("train.bin", lambda content: content[:-2]), r"train\.bin: \d+ bytes, but corpus\.json says \d+"),
        (rewritten("train.bin", lambda content: content[:-1]), r"train\.bin: \d+ bytes, but corpus\.json says \d+"),
        (rewritten("train.bin", lambda content: b""), r"train\.bin: 0 bytes, but corpus\.json says \d+"),
        (rewritten("val.bin", lambda content: content + b"\0\0"), r"val\.bin: \d+ bytes, but corpus\.json says \d+"),
        (without("documents.bin"), r"documents\.bin: No such file"),
        (without("documents.names"), r"documents\.names: No such file"),
        (as_fifo("documents.bin"), r"documents\.bin: it is a FIFO, not a regular file"),
        (rewritten("documents.bin", lambda content: content[:-1]), r"documents\.bin: 23 bytes, but .* says 24"),
        (rewritten("documents.bin", lambda content: b"\1" + content[1:]), r"documents\.bin: it does not end where"),
        (rewritten("documents.bin", lambda content: content[:-1] + b"\xff"), r"documents\.bin: it does not end where"),
        (
            rewritten("documents.names", lambda content: content + b"a"),
            r"documents\.names: 12 bytes, but documents\.bin says 11",
        ),
        (without("tokenizer/ranks.tiktoken"), r"ranks\.tiktoken: No such file or directory: prepare the corpus again"),
        (rewritten("tokenizer/ranks.tiktoken", lambda content: b"rubbish"), r"the tokenizer is damaged .*: prepare"),
        (rewritten("tokenizer/encoding.json", lambda content: b"{}"), r"the tokenizer is damaged"),
    ],
)
def test_a_damaged_corpus_is_a_user_error(
    corpus_folder: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    folder = tmp_path / "corpus"
    shutil.copytree(corpus_folder, folder)
    Corpus.open(folder)
    damage(folder)
    with pytest.raises(UserError, match=message):
        Corpus.open(folder)


def test_a_missing_folder_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        Corpus.open(tmp_path / "missing")


def test_a_manifest_is_read_as_written(tmp_path: Path) -> None:
    manifest = Manifest(
        tokenizer="日本語",
        vocab_size=300,
        mask_id=299,
        end_id=298,
        tokens={"train": 7, "val": 0},
        sha256=dict.fromkeys(("train", "val", "documents.bin", "documents.names"), "a"),
        documents=1,
    )
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest
    assert "日本語" in (tmp_path / MANIFEST).read_text(encoding="utf-8")


@pytest.mark.parametrize("tokens", [(1 << 31) + 100, (1 << 32) + 100])
def test_rows_beyond_the_range_of_32_bits_are_those_at_their_place(
    corpus_folder: Path, tmp_path: Path, tokens: int
) -> None:
    folder = Path(shutil.copytree(corpus_folder, tmp_path / "corpus"))
    edited(tokens={"train": tokens, "val": 0})(folder)
    with (folder / "train.bin").open("wb") as file:
        file.truncate(2 * tokens)  # a sparse file
        file.seek(2 * (tokens - 64))
        file.write(np.arange(64, dtype="<u2").tobytes())
    (folder / "val.bin").write_bytes(b"")
    (folder / "documents.bin").write_bytes(np.array([tokens, 0, 11], dtype="<i8").tobytes())
    corpus = Corpus.open(folder, verify="never")
    rows = corpus.rows("train", 4)
    assert len(rows) == tokens // 4
    assert rows[np.arange(len(rows) - 16, len(rows))].ravel().tolist() == list(range(64))
    shifted = TrainingRows([corpus.train], 4, seed=1, is_shifted=True)
    [shift] = shifted.shifts(np.array([0]))
    last = np.arange(len(rows) - 16, len(rows) - 1)
    assert shifted.read(Selection.of_epoch(0, 0, last, last)).ravel().tolist() == list(range(shift, 60 + shift))
    sampler = GlobalBatchSampler(len(rows), 1 << 16, seed=1)
    selected = sampler.select(len(sampler) + 1).rows
    assert selected.min() >= 0 and 0.99 * len(rows) < selected.max() < len(rows)
    assert len(np.unique(selected)) == 1 << 16
