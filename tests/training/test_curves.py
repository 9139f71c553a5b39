import json
from pathlib import Path

import matplotlib.image

from mlm_dist.training.curves import draw_curves


def test_a_run_is_drawn(run_dir: Path) -> None:
    picture = matplotlib.image.imread(run_dir / "plots/curves.png")
    height, width, _ = picture.shape
    assert height > 800
    assert width > 800
    assert picture[..., :3].std() > 0.05  # something is drawn on the white


def test_a_run_without_evaluations_or_with_a_single_line_is_drawn(tmp_path: Path) -> None:
    event = {"step": 1, "loss": 2.0, "lr": 1e-3, "tokens_per_second": 5.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(event) + "\n")
    draw_curves(tmp_path / "metrics.jsonl", tmp_path / "plots/curves.png")
    assert (tmp_path / "plots/curves.png").stat().st_size > 1000


def test_a_number_that_was_not_finite_leaves_a_gap(tmp_path: Path) -> None:
    events = [{"step": n, "loss": None if n == 2 else 2.0, "lr": 1e-3, "tokens_per_second": 5.0} for n in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    draw_curves(tmp_path / "metrics.jsonl", tmp_path / "plots/curves.png")
