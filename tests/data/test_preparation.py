"""Preparing a corpus keeps every token in order, and leaves nothing if it fails."""

import dataclasses
import hashlib
import itertools
import json
import os
import random
import shutil
import struct
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np
import pytest
import tiktoken

from mlm_dist.config import DataConfig
from mlm_dist.data import preparation
from mlm_dist.data.corpus import Corpus, Manifest
from mlm_dist.data.documents import DocumentIndex, IndexedDocument
from mlm_dist.data.encoding import Batch, EncodedBatch, encode_in_order
from mlm_dist.data.preparation import (
    SAMPLE_TEXT,
    CorpusWriter,
    find_or_prepare,
    prepare_corpus,
)
from mlm_dist.data.splitting import hold_out
from mlm_dist.data.tokenizer import END_OF_TEXT, MASK, Tokenizer
from mlm_dist.data.tokenizer_json import read_exported_tokenizer
from mlm_dist.errors import UserError
from mlm_dist.texts.document_list import DocumentPiece, find_documents
from mlm_dist.texts.finding import Split
from mlm_dist.texts.pieces import Piece
from tests.data.test_tokenizer_json import write as write_exported
from tests.texts.test_pieces import HARD_TEXTS, random_text


def byte_tokenizer(end_id: int = 256) -> Tokenizer:
    """A tokenizer with one token per byte and special tokens from `end_id` on."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    return Tokenizer.build("bytes", r"\s+|\S+", ranks, {END_OF_TEXT: end_id, MASK: end_id + 1})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Hard and random texts, one file each."""
    rng = random.Random(3)
    texts = HARD_TEXTS | {f"random {i}": random_text(rng, 400).lstrip("\ufeff") for i in range(20)}
    for name, text in texts.items():
        path = tmp_path / "texts" / f"{name}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode())
    return tmp_path / "texts"


def split_by_document(corpus: Corpus) -> list[tuple[str, list[int], list[int]]]:
    """(name, training tokens, validation tokens) of each document, by the index."""
    splits = np.asarray(corpus.train), np.asarray(corpus.val)
    return [(d.name, splits[0][d.train].tolist(), splits[1][d.val].tolist()) for d in corpus.documents()]


def in_pieces_of(characters: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read and encode documents in pieces of this size."""
    monkeypatch.setattr("mlm_dist.texts.document_list.DocumentList.pieces.__defaults__", (characters,))
    monkeypatch.setattr("mlm_dist.data.encoding.batches.__defaults__", (characters,))


@pytest.mark.parametrize("val_fraction", [0.0, 0.1, 0.5])
def test_training_and_validation_tokens_of_a_document_concatenate_to_its_gpt2_tokens(
    gpt2_vocabulary: None, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, val_fraction: float
) -> None:
    # The smallest pieces that split no token of these texts, for many cuts in every document.
    in_pieces_of(100, monkeypatch)
    manifest = prepare_corpus(hold_out(find_documents([folder]), val_fraction), tmp_path / "out", "gpt2")
    assert (manifest.tokenizer, manifest.mask_id, manifest.vocab_size) == ("gpt2", 50257, 50258)
    corpus, gpt2 = Corpus.open(tmp_path / "out"), tiktoken.get_encoding("gpt2")
    assert corpus.train.dtype == np.dtype("<u2")
    for name, train, val in split_by_document(corpus):
        text = (folder / name).read_bytes().decode()
        assert train[-1:] in ([], [50256]) and val[-1:] in ([], [50256])
        assert train[:-1] + val[:-1] == gpt2.encode_ordinary(text)


def test_the_index_describes_the_ranges_of_documents_and_each_ends_with_end_of_text(
    folder: Path, tmp_path: Path
) -> None:
    documents = hold_out(find_documents([folder]), 0.2)
    prepare_corpus(documents, tmp_path / "out", "bpe", vocab_size=300)
    corpus = Corpus.open(tmp_path / "out")
    end = corpus.tokenizer.end_id
    assert [d.name for d in corpus.documents()] == list(documents.names())
    # The ranges are contiguous, and the only end-of-text token of each is its last token.
    for split, tokens in (("train", corpus.train), ("val", corpus.val)):
        ranges = [getattr(d, split) for d in corpus.documents()]
        assert [0, *(r.stop for r in ranges)] == [*(r.start for r in ranges), len(tokens)]
        ends = [r.stop - 1 for r in ranges if r.stop > r.start]
        assert np.flatnonzero(tokens == end).tolist() == ends
    for name, train, val in split_by_document(corpus):
        text = corpus.tokenizer.decode(train[:-1]) + corpus.tokenizer.decode(val[:-1])
        assert text == (folder / name).read_bytes().decode()


def test_the_end_of_every_document_is_validation_text(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"{name} " * 5000, encoding="utf-8")
    prepare_corpus(hold_out(find_documents([tmp_path]), 0.25), tmp_path / "out", "bpe", vocab_size=258)
    for name, train, val in split_by_document(Corpus.open(tmp_path / "out")):
        assert abs(len(val) / (len(train) + len(val)) - 0.25) < 0.001
        letter = byte_of(name[0], tmp_path / "out")
        assert letter in train and letter in val


def byte_of(letter: str, corpus: Path) -> int:
    """The id of an ASCII letter in the vocabulary of a corpus."""
    [token] = Tokenizer.load(corpus / "tokenizer").encode(letter)
    return int(token)


def test_named_validation_documents_train_neither_the_model_nor_the_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello world " * 100, encoding="utf-8")
    (tmp_path / "b.txt").write_text("zqzq " * 1000, encoding="utf-8")
    documents = find_documents([tmp_path], [tmp_path / "b.txt"])
    prepare_corpus(documents, tmp_path / "out", "bpe", vocab_size=264)
    corpus = Corpus.open(tmp_path / "out")
    (_, a_train, a_val), (_, b_train, b_val) = split_by_document(corpus)
    assert a_train and b_val and not a_val and not b_train
    assert corpus.tokenizer.decode(b_val[:-1]) == "zqzq " * 1000
    assert b"zq" not in corpus.tokenizer.ranks
    assert b"ll" in corpus.tokenizer.ranks or b"lo" in corpus.tokenizer.ranks


def test_the_manifest_describes_the_files(corpus_folder: Path) -> None:
    manifest = json.loads((corpus_folder / "corpus.json").read_text(encoding="utf-8"))
    assert (manifest["version"], manifest["tokenizer"], manifest["vocab_size"]) == (3, "bpe", 300)
    assert (manifest["end_id"], manifest["mask_id"]) == (298, 299)
    for split in ("train", "val"):
        content = (corpus_folder / f"{split}.bin").read_bytes()
        assert manifest["sha256"][split] == hashlib.sha256(content).hexdigest()
        assert manifest["tokens"][split] * 2 == len(content)
    assert manifest["documents"] == 1
    ends, names = ((corpus_folder / name).read_bytes() for name in ("documents.bin", "documents.names"))
    assert [manifest["sha256"][name] for name in ("documents.bin", "documents.names")] == [
        hashlib.sha256(content).hexdigest() for content in (ends, names)
    ]
    assert names == b"sample.txt\n"
    assert struct.unpack("<3q", ends) == (manifest["tokens"]["train"], manifest["tokens"]["val"], len(names))


def test_a_corpus_consists_of_these_files_only(corpus_folder: Path) -> None:
    files = sorted(str(path.relative_to(corpus_folder)) for path in corpus_folder.rglob("*") if path.is_file())
    tokenizer = ["tokenizer/encoding.json", "tokenizer/ranks.tiktoken"]
    assert files == ["corpus.json", "documents.bin", "documents.names", *tokenizer, "train.bin", "val.bin"]


def test_preparing_again_gives_the_same_bytes(corpus_folder: Path, tmp_path: Path) -> None:
    prepare_corpus(hold_out(find_documents([SAMPLE_TEXT]), 0.1), tmp_path / "again", "bpe", vocab_size=300)
    for path in corpus_folder.rglob("*"):
        if path.is_file():
            assert (tmp_path / "again" / path.relative_to(corpus_folder)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("piece_characters", [50, 1000])
def test_the_piece_size_does_not_change_the_corpus(
    corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece_characters: int
) -> None:
    in_pieces_of(piece_characters, monkeypatch)
    manifest = prepare_corpus(hold_out(find_documents([SAMPLE_TEXT]), 0.1), tmp_path / "out", "bpe", vocab_size=300)
    assert manifest == Manifest.read(corpus_folder)


@pytest.mark.parametrize(("end_id", "dtype"), [(256, "<u2"), (65534, "<u2"), (65535, "<u4"), (200_018, "<u4")])
def test_large_vocabularies_are_written_in_32_bits(tmp_path: Path, end_id: int, dtype: str) -> None:
    writer = CorpusWriter(tmp_path, byte_tokenizer(end_id), documents=2)
    batches: list[tuple[Split, list[int], list[int], list[int]]] = [
        ("train", [0, 1], [1, 2, end_id, 3], [3, 1]),
        ("train", [1], [end_id], [1]),
        ("val", [1], [4, end_id], [2]),
    ]
    for split, documents, ids, lengths in batches:
        batch = Batch(split, documents, ["", ""], is_last=True)
        writer.add(EncodedBatch(batch, np.array(ids, dtype=np.uint32), np.array(lengths)))
    manifest = writer.finish(["a", "b"])
    assert manifest.dtype == np.dtype(dtype)
    assert np.fromfile(tmp_path / "train.bin", dtype=dtype).tolist() == [1, 2, end_id, 3, end_id]
    assert np.fromfile(tmp_path / "val.bin", dtype=dtype).tolist() == [4, end_id]
    assert list(DocumentIndex.open(tmp_path, manifest.documents, manifest.tokens)) == [
        IndexedDocument("a", train=slice(0, 3), val=slice(0, 0)),
        IndexedDocument("b", train=slice(3, 5), val=slice(0, 2)),
    ]


def test_pieces_are_encoded_in_order_with_few_in_memory() -> None:
    tokenizer, taken = byte_tokenizer(), 0

    def endless() -> Iterator[DocumentPiece]:
        nonlocal taken
        for taken in itertools.count(1):
            yield DocumentPiece(taken, Piece("train", f"piece {taken}", is_last=False))

    encoded = encode_in_order(endless(), tokenizer)
    assert isinstance(encoded, Generator)
    for index, (batch, ids, lengths) in enumerate(itertools.islice(encoded, 500), start=1):
        assert (batch.documents, batch.texts) == ([index], [f"piece {index}"])
        assert tokenizer.decode(ids) == f"piece {index}"
        assert lengths.tolist() == [len(ids)]
        assert taken - index <= 4 * (os.cpu_count() or 1) + 1
    encoded.close()


def test_out_must_not_exist(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="out already exists"):
        prepare_corpus(hold_out(find_documents([SAMPLE_TEXT]), 0.1), tmp_path / "out", "bpe", vocab_size=300)
    assert list((tmp_path / "out").iterdir()) == []


def test_an_invalid_document_after_valid_ones_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("fine " * 100_000, encoding="utf-8")
    (tmp_path / "texts" / "b.txt").write_bytes(b"not fine \xff")
    with pytest.raises(UserError, match=r"b\.txt: not utf-8 at byte 9 "):
        prepare_corpus(hold_out(find_documents([tmp_path / "texts"]), 0.1), tmp_path / "out", "bpe", vocab_size=258)
    assert [path.name for path in tmp_path.iterdir()] == ["texts"]


def test_a_document_with_only_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    for name, text in {"a": "\ufeff", "b": "one", "c": "\ufeff", "d": "two", "e": "three"}.items():
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    prepare_corpus(find_documents([tmp_path]), tmp_path / "out", "bpe", vocab_size=258)
    corpus = Corpus.open(tmp_path / "out")
    found = [(name, corpus.tokenizer.decode(tokens[:-1])) for name, tokens, _ in split_by_document(corpus)]
    assert found == [("b.txt", "one"), ("d.txt", "two"), ("e.txt", "three")]


def test_the_name_of_a_file_need_not_be_utf_8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.txt")
    (tmp_path / name).write_text("one two", encoding="utf-8")
    prepare_corpus(find_documents([tmp_path]), tmp_path / "out", "bpe", vocab_size=258)
    assert [found for found, _, _ in split_by_document(Corpus.open(tmp_path / "out"))] == [name]


def test_a_corpus_without_training_text_is_a_user_error(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("validation text", encoding="utf-8")
    with pytest.raises(UserError, match="no training text"):
        prepare_corpus(find_documents([], [path]), tmp_path / "out", "bpe", vocab_size=258)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mlm_dist"


def test_a_prepared_corpus_is_used_in_place(corpus_folder: Path, cache: Path) -> None:
    assert find_or_prepare(DataConfig(path=str(corpus_folder)), 300) == corpus_folder
    assert not cache.exists()


def test_text_is_prepared_into_the_cache_once(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "a.txt").write_text("some words " * 50, encoding="utf-8")
    config = DataConfig(path=str(tmp_path / "a.txt"), tokenizer="bpe")
    folder = find_or_prepare(config, 260)
    assert folder.parent == cache
    assert Corpus.open(folder).manifest.vocab_size == 260
    written = (folder / "corpus.json").stat().st_mtime_ns
    assert find_or_prepare(config, 260) == folder
    assert (folder / "corpus.json").stat().st_mtime_ns == written
    assert [path.parent for path in cache.glob("*/corpus.json")] == [folder]


def test_training_a_bpe_requires_a_vocabulary_size(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "a.txt").write_text("some words " * 50, encoding="utf-8")
    with pytest.raises(UserError, match=r"^data\.tokenizer bpe needs model\.vocab_size: 8000 suits a few megabytes"):
        find_or_prepare(DataConfig(path=str(tmp_path / "a.txt"), tokenizer="bpe"), None)
    assert not cache.exists()


def test_changed_text_or_settings_are_prepared_again(tmp_path: Path, cache: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("some words " * 50, encoding="utf-8")
    config = DataConfig(path=str(text), tokenizer="bpe")
    folders = [find_or_prepare(config, 260), find_or_prepare(config, 261)]
    folders.append(find_or_prepare(DataConfig(path=str(text), tokenizer="bpe", val_fraction=0.5), 260))
    text.write_text("more words " * 50, encoding="utf-8")
    os.utime(text, ns=(1, 1))
    folders.append(find_or_prepare(config, 260))
    assert len(set(folders)) == 4
    corpus = Corpus.open(folders[-1])
    assert corpus.tokenizer.decode(np.asarray(corpus.train)).startswith("more words")


def test_records_that_a_pattern_names_are_prepared_into_the_cache(tmp_path: Path, cache: Path) -> None:
    for name in "ab":
        lines = [json.dumps({"text": f"{name} words {i}\n" * 20, "body": f"other {i}"}) for i in range(20)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    config = DataConfig(path=str(tmp_path / "*.jsonl"), tokenizer="bpe")
    corpus = Corpus.open(find_or_prepare(config, 270))
    assert len(corpus.documents()) == 40
    assert corpus.documents()[20].name == "b.jsonl:1"
    bodies = Corpus.open(find_or_prepare(dataclasses.replace(config, text_key="body"), 270))
    assert bodies.folder != corpus.folder
    assert bodies.tokenizer.decode(np.asarray(bodies.train)).startswith("other 0")
    with pytest.raises(UserError, match=r"there is no such file or folder"):
        find_or_prepare(DataConfig(path=str(tmp_path / "*.csv"), tokenizer="bpe"), 270)


def test_sample_is_the_text_in_the_package(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    corpus = Corpus.open(find_or_prepare(DataConfig(path="sample", tokenizer="bpe", val_fraction=0.1), 300))
    assert [d.name for d in corpus.documents()] == ["sample.txt"]


def test_a_missing_data_path_is_a_user_error(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.path .*missing: there is no such corpus or text"):
        find_or_prepare(DataConfig(path=str(tmp_path / "missing")), 300)


def test_text_is_prepared_again_if_the_tokenizer_in_a_folder_changes(
    corpus_folder: Path, tmp_path: Path, cache: Path
) -> None:
    (tmp_path / "a.txt").write_text("A lamp in the harbour. " * 200)
    source = Path(shutil.copytree(corpus_folder, tmp_path / "source"))
    config = DataConfig(path=str(tmp_path / "a.txt"), tokenizer=str(source))
    first = find_or_prepare(config, None)
    assert find_or_prepare(config, None) == first
    assert first.parent == cache
    other = Tokenizer.train_bpe(["Another text."], 260)
    other.save(source / "tokenizer")
    second = find_or_prepare(config, None)
    assert second != first
    assert Corpus.open(second).tokenizer.fingerprint == other.fingerprint


def test_a_corpus_without_its_description_is_not_taken_for_texts(
    corpus_folder: Path, tmp_path: Path, cache: Path
) -> None:
    damaged = Path(shutil.copytree(corpus_folder, tmp_path / "corpus"))
    (damaged / "corpus.json").unlink()
    with pytest.raises(UserError, match=r"^no text in .*corpus: give files, or folders with files"):
        find_or_prepare(DataConfig(path=str(damaged), tokenizer=str(damaged)), None)
    assert not cache.exists()


def test_the_tokenizer_of_an_exported_model_is_used_and_read_once(
    corpus: Corpus, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def read_and_count(folder: Path) -> Tokenizer:
        read.append(folder)
        return read_exported_tokenizer(folder)

    monkeypatch.setattr(preparation, "read_exported_tokenizer", read_and_count)
    (tmp_path / "a.txt").write_text("A lamp in the harbour. " * 200)
    exported = write_exported(corpus.tokenizer, tmp_path / "exported")
    config = DataConfig(path=str(tmp_path / "a.txt"), tokenizer=str(exported))
    first = find_or_prepare(config, None)
    assert read == [exported]  # which takes seconds with a large vocabulary
    assert first.parent == cache
    assert Corpus.open(first).tokenizer.fingerprint == corpus.tokenizer.fingerprint
    assert find_or_prepare(config, None) == first
    write_exported(Tokenizer.train_bpe(["Another text."], 260), exported)
    second = find_or_prepare(config, None)
    assert second != first
    assert Corpus.open(second).manifest.vocab_size == 260
