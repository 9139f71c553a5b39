"""onnxruntime computes the logits of the encoder, for any batch size and length."""

import itertools
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

import mlm_dist
from mlm_dist.config import ModelConfig
from mlm_dist.data.corpus import Corpus
from mlm_dist.errors import UserError
from mlm_dist.huggingface.export import export_model
from mlm_dist.huggingface.onnx_file import write_onnx
from mlm_dist.model.encoder import LONGEST_PLAIN, Encoder
from tests.huggingface.conftest import make_run, random_encoder, run_last_example

pytestmark = pytest.mark.slow

SMALL = ModelConfig(vocab_size=310, block_size=16, embedding_dim=16, heads=2, blocks=2)

Exported = tuple[Encoder, Path]


def run(file: Path, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Logits by onnxruntime."""
    inputs = {"input_ids": tokens.numpy(), "attention_mask": np.ones_like(tokens) if mask is None else mask.numpy()}
    session: Any = onnxruntime.InferenceSession(file)
    (logits,) = session.run(["logits"], inputs)
    return torch.from_numpy(logits)


def check(logits: torch.Tensor, expected: torch.Tensor) -> None:
    """Check that logits differ by less than 1e-4 of their standard deviation."""
    assert logits.shape == expected.shape
    difference = ((logits - expected).abs().max() / expected.std()).item()
    print(f"\nlargest difference of two logits: {difference:.1e} of their standard deviation")
    assert difference < 1e-4


@pytest.fixture(scope="module")
def exported(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A model, and its export."""
    folder = tmp_path_factory.mktemp("onnx")
    encoder = random_encoder(SMALL)
    export_model(make_run(folder / "run", SMALL, corpus.tokenizer, encoder), folder / "small", ["onnx"])
    return encoder, folder / "small"


@torch.no_grad()
def check_all_shapes(encoder: Encoder, file: Path) -> None:
    """Check the logits for several batch sizes, and lengths from 1 to the block size."""
    longest = encoder.config.block_size
    for batch, length in itertools.product((1, 2, 5), {1, min(7, longest), max(1, longest - 1), longest}):
        tokens = torch.randint(SMALL.entries, (batch, length), generator=torch.Generator().manual_seed(length))
        check(run(file, tokens), encoder(tokens))


def test_logits_are_the_same_for_every_batch_size_and_length(exported: Exported) -> None:
    encoder, folder = exported
    check_all_shapes(encoder, folder / "model.onnx")
    assert [file.name for file in folder.iterdir() if "onnx" in file.name] == ["model.onnx"]


@pytest.mark.long
@pytest.mark.parametrize(
    "shape",
    [
        replace(SMALL, tie_embeddings=False, dropout=0.5),
        replace(SMALL, block_size=LONGEST_PLAIN + 44),
        replace(SMALL, block_size=1),
        replace(SMALL, positions="rope"),
    ],
    ids=["untied", "long rows", "one token", "rope"],
)
def test_logits_are_the_same_for_every_shape_of_the_model(shape: ModelConfig, tmp_path: Path) -> None:
    encoder = random_encoder(shape)
    write_onnx(encoder, tmp_path / "model.onnx")
    check_all_shapes(encoder, tmp_path / "model.onnx")


@torch.no_grad()
def test_padding_does_not_change_the_logits(exported: Exported) -> None:
    encoder, folder = exported
    tokens = torch.randint(SMALL.entries, (4, 16), generator=torch.Generator().manual_seed(0))
    lengths = [1, 5, 15, 16]
    logits = run(folder / "model.onnx", tokens, (torch.arange(16) < torch.tensor(lengths)[:, None]).long())
    assert logits.isfinite().all()
    for row, ids, length in zip(logits, tokens, lengths, strict=True):
        check(row[:length], encoder(ids[None, :length])[0])


def test_the_file_contains_no_path_of_the_machine(exported: Exported) -> None:
    content = (exported[1] / "model.onnx").read_bytes()
    for path in (str(Path(mlm_dist.__file__).parent), str(Path(torch.__file__).parent), sys.prefix, ".py"):
        assert path.encode() not in content


def test_the_example_on_the_model_card_runs(exported: Exported) -> None:
    shape = run_last_example(exported[1])
    assert shape.startswith("(2, ")
    assert shape.endswith(f", {SMALL.entries})\n")


def test_without_onnxscript_a_line_names_the_extra_and_nothing_is_written(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"^--onnx needs onnxscript: run `pip install 'mlm_dist\[onnx\]'`$"):
        export_model(mlm_dist.load(run_dir, "cpu"), tmp_path / "out", ["onnx"])
    assert list(tmp_path.iterdir()) == []
