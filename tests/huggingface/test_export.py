"""An exported folder works in transformers: tokenizer, padded batches, pipeline, the example on the model card."""

import re
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer, pipeline

import mlm_dist
from mlm_dist.data.preparation import SAMPLE_TEXT
from mlm_dist.data.tokenizer import Tokenizer
from mlm_dist.errors import UserError
from mlm_dist.huggingface import export as exporting
from mlm_dist.huggingface.export import export_model
from mlm_dist.inference.model import TrainedModel
from tests.conftest import start
from tests.huggingface.conftest import run_last_example
from tests.huggingface.test_tokenizer_file import HARDER_TEXTS

SAMPLE = SAMPLE_TEXT.read_text(encoding="utf-8")
TEXTS = ["The ferry [MASK] late.", "He", "  two  [MASK]\n", "Ned sat on [MASK] box"]


@pytest.fixture(scope="module")
def model(run_dir: Path) -> TrainedModel:
    return mlm_dist.load(run_dir, "cpu")


def test_the_folder_contains_only_the_files_that_transformers_reads(exported: Path) -> None:
    names = ["README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(file.name for file in exported.iterdir()) == names
    assert [path.name for path in exported.parent.iterdir()] == [exported.name]


def test_the_exported_tokenizer_has_the_same_ids_and_roles(exported: Path, model: TrainedModel) -> None:
    converted, config = AutoTokenizer.from_pretrained(exported), AutoConfig.from_pretrained(exported)
    tokenizer = model.tokenizer
    assert (converted.mask_token, converted.mask_token_id) == ("[MASK]", tokenizer.mask_id)
    for role in ("bos", "eos", "unk", "pad"):
        assert getattr(converted, f"{role}_token_id") == tokenizer.end_id
        assert role == "unk" or getattr(config, f"{role}_token_id") == tokenizer.end_id
    assert converted.model_max_length == config.max_position_embeddings == 16
    assert len(converted) == tokenizer.vocab_size
    for text in [SAMPLE, *TEXTS, *HARDER_TEXTS.values()]:
        expected = tokenizer.encoding.encode(text.replace(" [MASK]", "[MASK]"), allowed_special="all")
        assert converted(text).input_ids == expected
        assert converted.decode(expected) == text.replace(" [MASK]", "[MASK]")


def test_the_tokenizer_is_the_same_after_transformers_has_saved_it(exported: Path, tmp_path: Path) -> None:
    first = AutoTokenizer.from_pretrained(exported)
    first.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS, *HARDER_TEXTS.values()]:
        assert again(text).input_ids == first(text).input_ids


def test_a_long_text_is_truncated_to_the_context_window(exported: Path, model: TrainedModel) -> None:
    truncated = AutoTokenizer.from_pretrained(exported)(SAMPLE, truncation=True).input_ids
    assert truncated == model.tokenizer.encode(SAMPLE).tolist()[:16]


@torch.no_grad()
def test_padding_does_not_change_the_logits(exported: Path, model: TrainedModel) -> None:
    tokenizer, converted = AutoTokenizer.from_pretrained(exported), AutoModelForMaskedLM.from_pretrained(exported)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert not batch["attention_mask"].all()
    for text, row, attended in zip(TEXTS, converted(**batch).logits, batch["attention_mask"].bool(), strict=True):
        ids = model.tokenizer.encode_with_masks(text)
        torch.testing.assert_close(row[attended], model.encoder(torch.tensor([ids]))[0])


def test_the_pipeline_fills_a_mask_as_fill_does(exported: Path, model: TrainedModel) -> None:
    special = {model.tokenizer.mask_id, model.tokenizer.end_id}
    guesses = [g for g in pipeline("fill-mask", str(exported), top_k=300)(TEXTS[0]) if g["token"] not in special]
    (expected,) = model.fill(TEXTS[0], top=298).masks
    total = sum(guess["score"] for guess in guesses)  # `fill` excludes the special tokens
    assert [guess["score"] / total for guess in guesses] == pytest.approx([c.probability for c in expected], rel=1e-4)
    assert [guess["token_str"] for guess in guesses[:5]] == [candidate.text for candidate in expected[:5]]


def test_the_example_on_the_model_card_runs(exported: Path) -> None:
    guesses = run_last_example(exported)
    assert len(re.findall(r"^\d+\.\d% '.*'$", guesses, flags=re.MULTILINE)) == 5


def test_transformers_is_not_needed(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "transformers.py").write_text("raise ImportError('transformers was imported')")
    path = f"{tmp_path}:{Path(exporting.__file__).parents[2]}"
    command = [sys.executable, "-m", "mlm_dist.export", "--run", str(run_dir), "--out", str(tmp_path / "out")]
    result = start(command, PYTHONPATH=path)
    assert result.returncode == 0, result.stderr
    assert "transformers was imported" in start([sys.executable, "-c", "import transformers"], PYTHONPATH=path).stderr


def test_a_tokenizer_that_cannot_be_exported_leaves_no_files(run_dir: Path, tmp_path: Path) -> None:
    model = mlm_dist.load(run_dir, "cpu")
    parts = model.tokenizer
    model.tokenizer = Tokenizer.build(parts.name, r"(?s:.)", parts.ranks, parts.special_tokens)
    with pytest.raises(UserError, match="cannot be exported"):
        export_model(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
