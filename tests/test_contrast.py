"""`python -m mlm_dist.contrast`, run from the command line."""

import re
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

import mlm_dist
from mlm_dist.config import ModelConfig
from mlm_dist.data.corpus import Corpus
from mlm_dist.data.preparation import SAMPLE_TEXT
from tests.conftest import verb
from tests.huggingface.conftest import make_run

FEW = ["--steps", 5, "--batch_size", 16, "--lr", 1e-3]

# Written for this test: no figure on a real benchmark comes of it.
STS = "The ferry came in.\tThe ferry came in late.\t5\nNed sat down.\tNobody saw it.\t1\nThe lamp\tA lamp went out\t3\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with lines and scored pairs."""
    lines = [line for line in SAMPLE_TEXT.read_text(encoding="utf-8").splitlines() if line][:60]
    (tmp_path / "lines.txt").write_text("\n".join([*lines, "", lines[0]]))
    (tmp_path / "sts.tsv").write_text(STS)
    return tmp_path


@pytest.mark.slow
def test_the_folder_has_the_trained_model_and_the_figures(run_dir: Path, folder: Path) -> None:
    result = verb("contrast", "--run", run_dir, "--out", "out", "lines.txt", "--sts", "sts.tsv", *FEW, cwd=folder)
    assert (result.returncode, result.stderr) == (0, "")
    losses, figure, last = result.stdout.splitlines()
    assert re.fullmatch(r"contrastive loss: \d\.\d{4} in the first step, \d\.\d{4} in the last of 5", losses)
    found = re.fullmatch(
        r"(Spearman correlation: (\S+) before, (\S+) after \(([+-]\S+)\)), on 3 pairs of sts.tsv", figure
    )
    assert found
    assert float(found[3]) - float(found[2]) == pytest.approx(float(found[4]), abs=2e-4)
    assert last == "out: for SentenceTransformer('out')"
    card = (folder / "out/README.md").read_text(encoding="utf-8")
    assert found[1] in card
    assert "pipeline_tag: sentence-similarity" in card
    assert "fill-mask" not in card
    assert "`embed`" not in card
    assert "do not fill masks" in card
    assert "dropout 0.1, steps 5, batch_size 16, lr 0.001, temperature 0.05, seed 0" in card
    texts = ["The ferry came in.", "x"]
    vectors = SentenceTransformer(str(folder / "out"), device="cpu").encode(texts)
    assert np.abs(vectors - mlm_dist.load(run_dir, "cpu").embed(texts)).max() > 1e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--dropout 0", "--dropout is 0.0: it must be above 0 and below 1, or the two vectors are the same"),
        ("--batch_size 64", "different lines: give more, or a smaller --batch_size"),
        ("--steps 0", "--steps is 0: it must be at least 1"),
        ("--sts lines.txt", "lines.txt line 1: it has 1 fields"),
        ("--out lines.txt", "lines.txt already exists"),
    ],
)
def test_user_errors_are_one_line_and_write_nothing(run_dir: Path, folder: Path, arguments: str, message: str) -> None:
    before = sorted(folder.iterdir())
    result = verb("contrast", "--run", run_dir, "--out", "out", "lines.txt", *arguments.split(), cwd=folder)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert sorted(folder.iterdir()) == before


def test_a_model_that_cannot_be_exported_is_not_trained(corpus: Corpus, folder: Path) -> None:
    shape = ModelConfig(vocab_size=310, block_size=16, embedding_dim=16, heads=2, blocks=2, qk_norm=True)
    make_run(folder / "run", shape, corpus.tokenizer)
    result = verb("contrast", "--run", "run", "--out", "out", "lines.txt", *FEW, cwd=folder)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "this model cannot be exported" in result.stderr
