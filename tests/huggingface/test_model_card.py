"""The model card reports the figures of the run, and no others."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import mlm_dist
from mlm_dist import __version__
from mlm_dist.errors import UserError
from mlm_dist.huggingface.model_card import write_card
from mlm_dist.run.run_dir import RunDir


def card_of(run_dir: Path, name: str = "novels") -> str:
    return write_card(mlm_dist.load(run_dir, "cpu"), name)


def figures(card: str) -> dict[str, str]:
    """The rows of a card's tables."""
    rows = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("| ") and line != "| | |"]
    return dict(rows)


@pytest.fixture
def copy(run_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny run, which the test may change."""
    return Path(shutil.copytree(run_dir, tmp_path / "run"))


def evaluations(run_dir: Path) -> list[dict[str, Any]]:
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for event in map(json.loads, lines) if "val_loss" in event]


def test_every_figure_comes_from_the_run(run_dir: Path) -> None:
    encoder = mlm_dist.load(run_dir, "cpu").encoder
    last = evaluations(run_dir)[-1]
    assert last["step"] == 30
    assert figures(card_of(run_dir)) == {
        "parameters": f"{sum(parameter.numel() for parameter in encoder.parameters()):,}",
        "blocks": "2",
        "attention heads per block": "2",
        "embedding dimension": "16",
        "context window": "16",
        "vocabulary": "300 tokens (bpe, with [MASK])",
        "size of the output layer": "300",
        "input and output embeddings": "tied",
        "corpus": "sample",
        "steps": "30 of 30",
        "rows per step": "16",
        "tokens seen": f"{30 * 16 * 16:,}",
        "masked tokens": "15.0%, always replaced by the mask token",
        "dropout": "0.0",
        "optimizer": "adamw",
        "precision": "float32",
        "seed": "1337",
        "validation loss": f"{last['val_loss']:.4f} nats per masked token, at step 30",
        "validation accuracy": f"{last['val_accuracy']:.1%}",
    }


def test_the_front_matter_describes_the_model(run_dir: Path) -> None:
    _, front, page = card_of(run_dir).split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "mask_token": "[MASK]",
        "tags": ["mlm_dist"],
    }
    assert page.startswith("\n# novels\n")
    assert f"mlm_dist {__version__}." in page


def test_the_card_contains_no_path_of_the_machine(run_dir: Path, corpus_folder: Path) -> None:
    card = card_of(run_dir)
    assert str(corpus_folder) in RunDir(run_dir).config.read_text(encoding="utf-8")
    for folder in (*corpus_folder.parents, *run_dir.parents):
        assert len(folder.name) < 2 or folder.name not in card


def test_the_card_of_an_unfinished_run_has_the_figures_at_its_checkpoint(copy: Path) -> None:
    (copy / "DONE").unlink()
    shutil.rmtree(copy / "checkpoints/step-00000030")
    found = figures(card_of(copy))
    (at_20,) = (event for event in evaluations(copy) if event["step"] == 20)
    assert found["steps"] == "20 of 30"
    assert found["tokens seen"] == f"{20 * 16 * 16:,}"
    assert found["validation loss"] == f"{at_20['val_loss']:.4f} nats per masked token, at step 20"


def test_a_model_between_two_evaluations_has_the_figures_of_the_earlier_one(copy: Path) -> None:
    lines = (copy / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["step"] < 30 or "val_loss" not in line]
    (copy / "metrics.jsonl").write_text("".join(kept), encoding="utf-8")
    found = figures(card_of(copy))
    assert (found["steps"], found["validation loss"].split(", ")[1]) == ("30 of 30", "at step 20")


@pytest.mark.parametrize("accuracy", ["0.0", "null"])
def test_an_evaluation_without_a_loss_is_skipped(copy: Path, run_dir: Path, accuracy: str) -> None:
    with (copy / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(f'{{"step": 30, "val_loss": null, "val_accuracy": {accuracy}}}\n')
    assert figures(card_of(copy)) == figures(card_of(run_dir))


@pytest.mark.parametrize("metrics", ["without evaluations", "lost"])
def test_a_run_without_evaluations_has_no_validation_metrics(copy: Path, metrics: str) -> None:
    kept = [line for line in (copy / "metrics.jsonl").open(encoding="utf-8") if "val_loss" not in line]
    (copy / "metrics.jsonl").write_text("".join(kept), encoding="utf-8")
    if metrics == "lost":
        (copy / "metrics.jsonl").unlink()
    found = figures(card_of(copy))
    assert found["validation loss"] == "not measured"
    assert "validation accuracy" not in found
    assert found["steps"] == "30 of 30"


def test_the_steps_of_a_model_pth_alone_are_unknown(copy: Path) -> None:
    (copy / "DONE").unlink()
    shutil.rmtree(copy / "checkpoints")
    found = figures(card_of(copy))
    assert (found["steps"], found["tokens seen"], found["validation loss"]) == ("unknown", "unknown", "not measured")


def change_config(run: Path, *changes: tuple[str, str]) -> None:
    """Replace parts of the config of a run."""
    config = (run / "config.yaml").read_text(encoding="utf-8")
    for before, after in changes:
        assert before in config
        config = config.replace(before, after)
    (run / "config.yaml").write_text(config, encoding="utf-8")


def test_the_settings_come_from_the_config(copy: Path) -> None:
    change_config(
        copy,
        ("replacement: mask", "replacement: 80/10/10"),
        ("mask_prob: 0.15", "mask_prob: 0.3"),
        ("dropout: 0.0", "dropout: 0.1"),
        ("seed: 1337", "seed: 7"),
        ("name: adamw", "name: muon"),
    )
    found = figures(card_of(copy))
    assert found["masked tokens"] == "30.0%, 80/10/10"
    assert (found["dropout"], found["seed"], found["optimizer"]) == ("0.1", "7", "muon")


def test_the_card_counts_the_tokens_of_earlier_phases(copy: Path) -> None:
    change_config(copy, ("phases: []", "phases: [{steps: 10, batch_size: 4, row_length: 8}]"))
    found = figures(card_of(copy))
    assert (found["rows per step"], found["tokens seen"]) == ("16, fewer at first", f"{(10 * 4 + 20 * 16) * 16:,}")


def test_the_card_says_in_which_part_of_the_run_the_mask_rate_changes(copy: Path) -> None:
    change_config(
        copy,
        ("mask_prob: 0.15", "mask_prob: 0.3"),
        ("mask_prob_end: null", "mask_prob_end: 0.15"),
        ("mask_prob_change_fraction: 1.0", "mask_prob_change_fraction: 0.2"),
    )
    described = "30.0%, changing to 15.0% over the last 20% of the run, always replaced by the mask token"
    assert figures(card_of(copy))["masked tokens"] == described


@pytest.mark.parametrize(
    ("mask_prob", "unit", "described"),
    [  # as earlier versions wrote it, which is still read
        ("[0, 1]", "token", "a rate sampled per row, from 0.0% to 100.0%, always replaced by the mask token"),
        (
            "{from: 0.3, to: 0.15}",
            "word",
            "30.0% at the start to 15.0% at the end of the run, whole words, always replaced by the mask token",
        ),
    ],
)
def test_the_card_describes_the_masking(copy: Path, mask_prob: str, unit: str, described: str) -> None:
    config = (copy / "config.yaml").read_text(encoding="utf-8")
    config = config.replace("  mask_prob_end: null\n", "").replace("  mask_prob_range: null\n", "")
    config = config.replace("mask_prob: 0.15", f"mask_prob: {mask_prob}").replace("unit: token", f"unit: {unit}")
    (copy / "config.yaml").write_text(config, encoding="utf-8")
    found = figures(card_of(copy))
    assert found["masked tokens"] == described
    assert ("per token," in found["validation loss"]) == (mask_prob == "[0, 1]")


def test_the_precision_is_what_the_device_computed_in(copy: Path) -> None:
    config = (copy / "config.yaml").read_text(encoding="utf-8")
    (copy / "config.yaml").write_text(config.replace("precision: fp32", "precision: auto"), encoding="utf-8")
    machine = (copy / "machine.json").read_text(encoding="utf-8")
    (copy / "machine.json").write_text(machine.replace("float32", "bfloat16"), encoding="utf-8")
    assert figures(card_of(copy))["precision"] == "bfloat16"
    (copy / "machine.json").unlink()
    assert figures(card_of(copy))["precision"] == "not recorded"


def test_damaged_metrics_are_reported(copy: Path) -> None:
    (copy / "metrics.jsonl").write_text('{"step": 5, "val_loss": 3.0}\n')
    with pytest.raises(UserError, match=r"metrics.jsonl is damaged"):
        card_of(copy)
