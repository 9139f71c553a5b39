"""The examples in docs/extending.md run unchanged."""

import re
import sys
from pathlib import Path

import pytest

from mlm_dist.run.metrics import read_events
from tests.conftest import REPOSITORY, start

PAGE = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
EXAMPLES: dict[str, str] = dict(re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?^```python\n(.*?)^```", PAGE, re.M | re.S))


def run_example(title: str, folder: Path, without: str = "") -> str:
    """Run an example in a folder, without the line `without`, and return its output."""
    code = EXAMPLES[title].replace(f"\n{without}\n", "\n")
    assert without in EXAMPLES[title]
    folder.mkdir(exist_ok=True)
    (folder / "example.py").write_text(code, encoding="utf-8")
    result = start([sys.executable, "example.py"], cwd=folder)
    assert result.returncode == 0, result.stderr
    return result.stdout


def last_number(output: str) -> float:
    """The number on the last line of an output."""
    return float(output.splitlines()[-1])


def test_every_extension_point_has_an_example() -> None:
    assert list(EXAMPLES) == ["A metric tracker", "A model class", "A mask policy", "Another objective"]


def test_a_custom_tracker_gets_the_metrics(tmp_path: Path) -> None:
    output = run_example("A metric tracker", tmp_path)
    losses = [event["loss"] for event in read_events(tmp_path / "runs/csv/metrics.jsonl") if "loss" in event]
    assert len(losses) == 4
    for step, loss in zip((5, 10, 15, 20), losses, strict=True):
        assert f"{step},train/loss,{loss}" in output


def test_a_custom_model_trains_and_predicts(tmp_path: Path) -> None:
    assert "probability" in run_example("A model class", tmp_path)
    losses = [event["val_loss"] for event in read_events(tmp_path / "runs/conv/metrics.jsonl") if "val_loss" in event]
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize(
    ("title", "change"),
    [
        ("A mask policy", "masking.find_maskable = letters_only"),
        ("Another objective", "MaskedLoss.forward = with_small_states"),
    ],
)
def test_a_custom_mask_policy_or_objective_trains_a_different_model(title: str, change: str, tmp_path: Path) -> None:
    changed = last_number(run_example(title, tmp_path / "changed"))
    assert changed != last_number(run_example(title, tmp_path / "default", without=change))
    assert 4 < changed < 7
