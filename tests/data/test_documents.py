"""The index of documents is read as written, costs nothing at the start of a run, and its damage is found."""

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mlm_dist.data import documents as documents_module
from mlm_dist.data.corpus import Corpus
from mlm_dist.data.documents import DocumentIndex, IndexedDocument
from mlm_dist.data.preparation import prepare_corpus
from mlm_dist.errors import UserError
from mlm_dist.texts.document_list import find_documents
from tests.conftest import convert_corpus, start

NAMES = ["one.txt", "日本語/ü.txt", "a name\nin two lines", "not UTF-8: \udcff", ""]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A corpus of three documents: in both splits, in one split, and in the other."""
    paths = [tmp_path / name for name in ("both", "train", "val")]
    for path in paths:
        path.write_text("some words " * 60, encoding="utf-8")
    documents = dataclasses.replace(find_documents(paths), val_starts=np.array([300, 660, 0]))
    prepare_corpus(documents, tmp_path / "corpus", "bpe", vocab_size=270)
    return tmp_path / "corpus"


def write_index(folder: Path, names: list[str], tokens: int = 1) -> DocumentIndex:
    """Write an index of documents with this many tokens in each split, and open it."""
    documents_module.write_index(folder, names, np.full((len(names), 2), tokens, dtype=np.int64))
    return DocumentIndex.open(folder, len(names), dict.fromkeys(("train", "val"), len(names) * tokens))


def test_documents_are_read_as_written(tmp_path: Path) -> None:
    index = write_index(tmp_path, NAMES, tokens=1 << 40)
    assert list(index) == [
        IndexedDocument(name, slice(i << 40, (i + 1) << 40), slice(i << 40, (i + 1) << 40))
        for i, name in enumerate(NAMES)
    ]
    assert index[4].count("val") == 1 << 40
    with pytest.raises(IndexError):
        index[5]


def test_names_are_text_with_a_line_each(tmp_path: Path) -> None:
    write_index(tmp_path, ["a.txt", "ü.txt"])
    assert (tmp_path / "documents.names").read_text(encoding="utf-8") == "a.txt\nü.txt\n"


def test_an_index_without_documents_is_read(tmp_path: Path) -> None:
    assert list(write_index(tmp_path, [])) == []


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_counts_are_those_of_the_documents(folder: Path, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents_module, "CHUNK_DOCUMENTS", chunk)
    index = Corpus.open(folder).documents()
    assert np.concatenate(list(index.counts())).tolist() == [[d.count("train"), d.count("val")] for d in index]


@pytest.mark.parametrize("version", [1, 2])
def test_the_documents_of_an_earlier_format_version_are_read(folder: Path, version: int) -> None:
    expected = list(Corpus.open(folder).documents())
    convert_corpus(folder, version)
    corpus = Corpus.open(folder)
    assert (corpus.manifest.version, corpus.manifest.documents) == (version, 3)
    assert list(corpus.documents()) == expected


@pytest.mark.parametrize(
    "document", [{}, "x", {"name": "a", "train": [0, 1]}, {"name": 5, "train": [0, 1], "val": [0]}]
)
def test_a_damaged_document_of_an_earlier_version_is_a_user_error(folder: Path, document: object) -> None:
    convert_corpus(folder, 2)
    content = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
    (folder / "corpus.json").write_text(json.dumps(content | {"documents": [document]}), encoding="utf-8")
    with pytest.raises(UserError, match=r"corpus\.json: not a corpus description"):
        Corpus.open(folder)


@pytest.mark.parametrize(
    ("name", "change"),
    [("documents.bin", lambda content: b"\7" + content[1:]), ("documents.names", lambda content: b"x" + content[1:])],
)
def test_damage_inside_the_index_is_found_by_who_reads_it(
    folder: Path, tmp_path: Path, name: str, change: Callable[[bytes], bytes]
) -> None:
    damaged = Path(shutil.copytree(folder, tmp_path / "damaged"))
    (damaged / name).write_bytes(change((damaged / name).read_bytes()))
    corpus = Corpus.open(damaged)  # training does not read the index
    with pytest.raises(UserError, match=rf"{name}: its SHA-256 is not the one in corpus\.json"):
        corpus.documents()


def make_up_documents(folder: Path, count: int) -> None:
    """Give a corpus this many documents. Only the last one in the index has tokens and a name."""
    manifest = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
    (folder / "corpus.json").write_text(json.dumps(manifest | {"documents": count}), encoding="utf-8")
    with (folder / "documents.bin").open("wb") as file:
        file.truncate(count * 24)  # a sparse file
        file.seek((count - 1) * 24)
        file.write(np.array([*manifest["tokens"].values(), 2], dtype="<i8").tobytes())
    (folder / "documents.names").write_bytes(b"a\n")


MEASURE = """
import re, sys
from pathlib import Path
from mlm_dist.data.corpus import Corpus

corpus = Corpus.open(Path(sys.argv[1]))
print(corpus.manifest.documents, re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measures memory as Linux reports it")
def test_memory_at_the_start_does_not_grow_with_the_number_of_documents(folder: Path) -> None:
    peaks = []
    for count in (3, 5_000_000):  # 120 MB of index
        make_up_documents(folder, count)
        documents, kilobytes = map(int, start([sys.executable, "-c", MEASURE, str(folder)]).stdout.split())
        assert documents == count
        peaks.append(kilobytes)
    assert peaks[1] - peaks[0] < 20_000
