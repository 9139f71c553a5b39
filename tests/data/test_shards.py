"""Tokens in shards are read like one array, and a shard that is missing, damaged, swapped or too many is named."""

import dataclasses
import itertools
import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlm_dist.data.corpus import MANIFEST, Corpus, Manifest
from mlm_dist.data.preparation import SAMPLE_TEXT, encode_corpus, prepare_corpus
from mlm_dist.data.rows import TrainingRows
from mlm_dist.data.sampler import Selection
from mlm_dist.data.shards import Shards, SplitWriter, read_rows
from mlm_dist.data.splitting import hold_out
from mlm_dist.errors import UserError
from mlm_dist.texts.document_list import find_documents
from tests.data.test_corpus import edited, rewritten, without

TOKENS = np.arange(1000, dtype=np.uint16)
SIZES = [1, 3, 16, 17, 250, 999, 1000, 5000]


def in_shards(size: int, tokens: np.ndarray = TOKENS) -> Shards:
    return Shards([tokens[start : start + size] for start in range(0, len(tokens), size)])


@pytest.mark.parametrize("size", SIZES)
def test_shards_and_their_slices_are_one_array(size: int) -> None:
    shards = in_shards(size)
    assert (len(shards), shards.dtype, shards.nbytes) == (1000, TOKENS.dtype, 2000)
    for start, stop in itertools.combinations([0, 1, 16, 17, 500, 999, 1000, -3], 2):
        part = shards[start:stop]
        assert np.array_equal(np.array(part), TOKENS[start:stop])
        assert all(np.shares_memory(piece, TOKENS) for piece in part.parts if len(piece))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("length", [1, 16, 100, 1000])
def test_rows_within_and_across_shards_are_those_of_the_array_and_go_round(length: int, size: int) -> None:
    starts = np.random.default_rng(0).permutation(1000)[:30]
    expected = np.append(TOKENS, TOKENS)[starts[:, None] + np.arange(length)]
    for tokens in (TOKENS, in_shards(size)):
        rows = read_rows(tokens, starts, length)
        assert np.array_equal(rows, expected)
        assert rows.dtype == TOKENS.dtype


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("is_shifted", [False, True])
def test_training_and_validation_rows_are_those_of_the_array(is_shifted: bool, size: int) -> None:
    selection = Selection.of_epoch(0, 3, np.random.default_rng(1).permutation(62), np.arange(62))
    one, several = (TrainingRows([tokens], 16, 5, is_shifted) for tokens in (TOKENS, in_shards(size)))
    assert np.array_equal(several.read(selection), one.read(selection))
    rows = in_shards(size)[:992].reshape(62, 16)
    assert (len(rows), rows.shape) == (62, (62, 16))
    assert np.array_equal(rows[selection.rows], TOKENS[:992].reshape(62, 16)[selection.rows])


@pytest.mark.parametrize("size", [16, 17, 416, 1000, 5000])
def test_the_files_have_no_more_than_so_many_tokens_whatever_the_batches(size: int, tmp_path: Path) -> None:
    writer = SplitWriter(tmp_path, "train", np.dtype("<u2"), size)
    for batch in np.array_split(TOKENS, [0, 1, 400, 416, 990]):
        writer.write(batch)
    writer.close()
    contents = [path.read_bytes() for path in sorted(tmp_path.iterdir())]
    assert {len(content) for content in contents[:-1]} <= {2 * size}
    assert 0 < len(contents[-1]) <= 2 * size
    assert b"".join(contents) == TOKENS.astype("<u2").tobytes()


@pytest.mark.parametrize("size", [1000, 20_000, 1 << 40])
def test_a_corpus_in_shards_differs_from_one_without_in_its_files_only(
    size: int, corpus_folder: Path, tmp_path: Path
) -> None:
    prepare_corpus(hold_out(find_documents([SAMPLE_TEXT]), 0.1), tmp_path / "out", "bpe", 300, shard_tokens=size)
    plain, sharded = Corpus.open(corpus_folder), Corpus.open(tmp_path / "out", verify="always")
    for split, tokens, expected in (("train", sharded.train, plain.train), ("val", sharded.val, plain.val)):
        assert np.array_equal(np.array(tokens), np.array(expected))
        assert len([*(tmp_path / "out").glob(f"{split}-*.bin")]) == -(-len(expected) // size)
    shards = sharded.manifest.sha256.keys() - plain.manifest.sha256.keys()
    assert {*shards} == {path.name for path in (tmp_path / "out").glob("*-*.bin")}
    digests = {name: digest for name, digest in sharded.manifest.sha256.items() if name not in shards}
    assert dataclasses.replace(sharded.manifest, sha256=digests, shard_tokens=None) == plain.manifest
    assert "shard" not in (corpus_folder / MANIFEST).read_text(encoding="utf-8")


def test_an_empty_split_is_one_empty_shard(corpus: Corpus, tmp_path: Path) -> None:
    encode_corpus(find_documents([SAMPLE_TEXT]), tmp_path, corpus.tokenizer, shard_tokens=10_000)
    assert [path.name for path in tmp_path.glob("val*")] == ["val-00000.bin"]
    opened = Corpus.open(tmp_path, verify="always")
    assert len(opened.val) == len(opened.rows("val", 16)) == 0


def swapped(folder: Path) -> None:
    """Exchange two shards."""
    first, second = ((folder / f"train-0000{shard}.bin").read_bytes() for shard in (1, 2))
    (folder / "train-00001.bin").write_bytes(second)
    (folder / "train-00002.bin").write_bytes(first)


def additional(folder: Path) -> None:
    """Copy a shard beyond the last one."""
    shutil.copy(folder / "train-00000.bin", folder / "train-00099.bin")


def without_digest(folder: Path) -> None:
    digests = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["sha256"]
    del digests["train-00003.bin"]
    edited(sha256=digests)(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("train-00001.bin"), r"train-00001\.bin: No such file or directory; prepare the corpus again"),
        (rewritten("train-00001.bin", lambda content: content[:-2]), r"train-00001\.bin: 1998 bytes, .* says 2000"),
        (rewritten("val-00000.bin", lambda content: content + b"\0\0"), r"val-00000\.bin: 2002 bytes, .* says 2000"),
        (swapped, r"train-00001\.bin: its SHA-256 is not the one in corpus\.json"),
        (rewritten("train-00002.bin", lambda content: b"\1" + content[1:]), r"train-00002\.bin: its SHA-256 is not"),
        (additional, r"train-00099\.bin: corpus\.json has \d+ shards, and not this one: delete it"),
        (without_digest, r"corpus\.json: not a corpus description \(a value is missing"),
        (edited(shard_tokens=0), r"corpus\.json: not a corpus description \(counts and ids must be"),
        (edited(shard_tokens=-1), r"corpus\.json: not a corpus description"),
        (edited(shard_tokens="1000"), r"corpus\.json: not a corpus description"),
        (edited(shard_tokens=0.5), r"corpus\.json: not a corpus description"),
        (edited(shard_tokens=999), r"train-00000\.bin: 2000 bytes, but corpus\.json says 1998"),
        (edited(shard_tokens=1), r"corpus\.json: not a corpus description \(a value is missing"),
        (edited(shard_tokens=None), r"train\.bin: No such file or directory"),
    ],
)
def test_a_damaged_shard_is_named_in_a_line(
    sharded_folder: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    folder = Path(shutil.copytree(sharded_folder, tmp_path / "corpus"))
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        Corpus.open(folder)
    assert "\n" not in str(caught.value)


def test_more_shards_than_files_may_be_open_are_a_user_error(sharded_folder: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = {int(path.name) for path in Path("/proc/self/fd").iterdir()}
    free = (number for number in itertools.count() if number not in used)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next(itertools.islice(free, 20, None)), limits[1]))
    try:
        with pytest.raises(UserError, match=r"Too many open files; raise `ulimit -n`, or prepare larger shards"):
            Corpus.open(sharded_folder)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_manifest_of_a_corpus_in_shards_is_read_as_written(sharded_folder: Path, tmp_path: Path) -> None:
    manifest: Any = Manifest.read(sharded_folder)
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest
    assert manifest.shard_tokens == 1000
