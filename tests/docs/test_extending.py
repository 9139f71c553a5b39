"""The examples of docs/extending.md run as they are."""

import re
import sys
from pathlib import Path

import pytest

from mlm_dist.run.metrics import read_events
from tests.conftest import REPOSITORY, start

PAGE = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
EXAMPLES: dict[str, str] = dict(re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?^```python\n(.*?)^```", PAGE, re.M | re.S))


def run_example(title: str, folder: Path, without: str = "") -> str:
    """Run an example in a folder, without one of its lines, and return what it prints."""
    code = EXAMPLES[title].replace(f"\n{without}\n", "\n")
    assert without in EXAMPLES[title]
    folder.mkdir(exist_ok=True)
    (folder / "example.py").write_text(code, encoding="utf-8")
    result = start([sys.executable, "example.py"], cwd=folder)
    assert result.returncode == 0, result.stderr
    return result.stdout


def last_number(printed: str) -> float:
    """The number on the last line."""
    return float(printed.splitlines()[-1])


def test_every_seam_has_an_example():
    assert list(EXAMPLES) == ["A metric tracker", "A model class", "A mask policy", "Another objective"]


def test_a_tracker_of_ones_own_gets_the_figures(tmp_path: Path):
    printed = run_example("A metric tracker", tmp_path)
    losses = [event["loss"] for event in read_events(tmp_path / "runs/csv/metrics.jsonl") if "loss" in event]
    assert len(losses) == 4
    for step, loss in zip((5, 10, 15, 20), losses, strict=True):
        assert f"{step},train/loss,{loss}" in printed


def test_a_model_of_ones_own_trains_and_predicts(tmp_path: Path):
    assert "probability" in run_example("A model class", tmp_path)
    losses = [event["val_loss"] for event in read_events(tmp_path / "runs/conv/metrics.jsonl") if "val_loss" in event]
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize(
    ("title", "seam"),
    [
        ("A mask policy", "masking.find_maskable = letters_only"),
        ("Another objective", "MaskedLoss.forward = with_small_states"),
    ],
)
def test_another_mask_policy_and_another_objective_train_another_model(title: str, seam: str, tmp_path: Path):
    changed = last_number(run_example(title, tmp_path / "changed"))
    assert changed != last_number(run_example(title, tmp_path / "default", without=seam))
    assert 4 < changed < 7
