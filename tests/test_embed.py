"""`python -m mlm_dist.embed`, run from the command line."""

import os
from pathlib import Path

import numpy as np
import pytest

import mlm_dist
from tests.conftest import verb

LINES = ["The lamp went out.", "", "Aunt Zoë"]


def test_the_vectors_of_the_lines_are_saved_as_rows(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("\n".join(LINES))
    result = verb("embed", "--run", run_dir, "--out", tmp_path / "vectors", tmp_path / "lines.txt")
    assert result.returncode == 0, result.stderr
    vectors = np.load(tmp_path / "vectors")
    np.testing.assert_allclose(vectors, mlm_dist.load(run_dir, "cpu").embed(LINES), rtol=1e-5)
    assert result.stdout == f"{tmp_path}/vectors: 3 vectors of dimension 16\n"


def test_lines_are_read_from_standard_input(run_dir: Path, tmp_path: Path) -> None:
    result = verb("embed", "--run", run_dir, "--out", tmp_path / "v.npy", stdin="a\nb\n")
    assert result.returncode == 0, result.stderr
    assert np.load(tmp_path / "v.npy").shape == (2, 16)


def test_its_flags_choose_layer_and_pooling(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("\n".join(LINES))
    model = mlm_dist.load(run_dir, "cpu")
    flags = ["--layer", 1, "--pool", "weighted", "--normalize"]
    assert verb("embed", "--run", run_dir, "--out", tmp_path / "v.npy", tmp_path / "lines.txt", *flags).returncode == 0
    expected = model.embed(LINES, layer=1, pool="weighted", normalize=True)
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), expected, rtol=1e-5)
    refused = verb("embed", "--run", run_dir, "--out", tmp_path / "w.npy", tmp_path / "lines.txt", "--layer", 3)
    assert refused.returncode == 2
    assert refused.stderr == "mlm_dist: error: --layer is 3: it must be from 0, the embeddings, to 2\n"
    assert not (tmp_path / "w.npy").exists()


@pytest.mark.parametrize(
    ("out", "lines", "message"),
    [
        ("nowhere/v.npy", "lines.txt", "it must be a file in an existing folder"),
        (".", "lines.txt", "it must be a file in an existing folder"),
        ("pipe", "lines.txt", "it must be a file in an existing folder"),
        ("lines.txt", "./lines.txt", "it is the input file: choose another file"),
        ("v.npy", "gone.txt", "gone.txt: No such file"),
        ("v.npy", "latin.txt", "latin.txt: not UTF-8 at byte 3"),
        ("v.npy", "empty.txt", "empty.txt: it is empty"),
    ],
)
def test_user_errors_are_one_line_and_write_nothing(
    run_dir: Path, tmp_path: Path, out: str, lines: str, message: str
) -> None:
    (tmp_path / "lines.txt").write_text("a\n")
    (tmp_path / "latin.txt").write_bytes("caf\u00e9".encode("latin-1"))
    (tmp_path / "empty.txt").write_text("")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.iterdir())
    result = verb("embed", "--run", run_dir, "--out", out, lines, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "lines.txt").read_text() == "a\n"
    assert (tmp_path / "pipe").is_fifo()
