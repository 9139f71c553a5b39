import json
from pathlib import Path

import numpy as np
import pytest

from mlm_dist.errors import UserError
from mlm_dist.run.history import read_histories, read_history, shortest_names
from mlm_dist.run.origin import Origin

OF_A_CORPUS = {"step": 1, "val_loss": 2.0, "val_loss/old": "high"}


def write_metrics(folder: Path, *events: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    return folder / "metrics.jsonl"


def test_recorded_values_become_columns(run_dir: Path) -> None:
    history = read_history(run_dir / "metrics.jsonl", "tiny")
    assert history.name == "tiny"
    assert history.training["step"].tolist() == list(range(1, 31))
    assert history.training["tokens"].tolist() == [step * 16 * 16 for step in range(1, 31)]
    assert history.evaluations["step"].tolist() == [0, 10, 20, 30]
    assert (history.evaluations["val_loss"] > 4).all()
    assert not any(np.isnan(column).any() for column in history.training.values())


def test_evaluations_have_the_tokens_and_seconds_of_their_step(run_dir: Path) -> None:
    history = read_history(run_dir / "metrics.jsonl", "tiny")
    assert history.evaluations["tokens"].tolist() == [0, 10 * 256, 20 * 256, 30 * 256]
    assert history.evaluations["seconds"][1:].tolist() == history.training["seconds"][[9, 19, 29]].tolist()


def test_null_and_missing_values_are_nan_and_skipped_steps_are_left_out(tmp_path: Path) -> None:
    metrics = write_metrics(
        tmp_path, {"step": 1, "loss": None, "lr": 0.1}, {"step": 2, "skipped": "loss nan"}, {"step": 2, "loss": 3.0}
    )
    training = read_history(metrics, "run").training
    np.testing.assert_equal(training["loss"], [np.nan, 3.0])
    np.testing.assert_equal(training["lr"], [0.1, np.nan])
    np.testing.assert_equal(training["tokens"], [np.nan, np.nan])


def test_the_losses_on_the_text_of_the_source_are_those_of_its_corpora(tmp_path: Path) -> None:
    metrics = write_metrics(
        tmp_path,
        {"step": 0, "val_loss": 5.0, "val_loss/new": 6.0, "val_loss/old": 4.0, "val_loss//corpora/same": 4.5},
        {"step": 9, "val_loss": 3.0, "val_loss/new": 2.0, "val_loss/same": 1.0, "val_loss//corpora/same": 5.5},
    )
    assert read_history(metrics, "run").source_losses == {}
    corpora = {name: [f"/corpora/{name}", "digest"] for name in ("old", "same", "not measured")}
    Origin("runs/source", 1000, "digest", corpora).write(tmp_path / "origin.json")
    losses = read_history(metrics, "run").source_losses
    assert list(losses) == ["old", "same"]
    np.testing.assert_equal(losses["old"], [4.0, np.nan])
    np.testing.assert_equal(losses["same"], [4.5, 5.5])  # the run itself has another corpus with the path "same"


def test_missing_empty_and_damaged_metrics_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="nowhere is not a run directory: there is no such folder"):
        read_history(tmp_path / "nowhere" / "metrics.jsonl", "run")
    with pytest.raises(UserError, match=r"metrics.jsonl has no events yet"):
        read_history(write_metrics(tmp_path), "run")
    for event in ({"step": 1, "loss": "high"}, {"step": 1, "loss": [1, 2]}, {"step": None, "loss": 3.0}, OF_A_CORPUS):
        metrics = write_metrics(tmp_path, event, {"step": 2, "loss": 1.0})
        assert read_history(metrics, "run").training["loss"].tolist() == [1.0]
        assert capsys.readouterr().err == f"mlm_dist: {metrics} line 1 is skipped: it is not an event\n"


def test_runs_are_named_by_the_shortest_unique_ends_of_their_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shortest_names([Path("/a/x")]) == ["x"]
    assert shortest_names([Path("/a/x"), Path("/b/x"), Path("/b/y")]) == ["a/x", "b/x", "y"]
    assert shortest_names([Path("/a/b/x"), Path("/c/b/x")]) == ["a/b/x", "c/b/x"]
    assert shortest_names([Path("/x"), Path("/b/x")]) == ["/x", "b/x"]
    monkeypatch.chdir(tmp_path)
    assert shortest_names([Path()]) == [tmp_path.name]


def test_a_run_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    write_metrics(tmp_path / "run", {"step": 1, "loss": 1.0})
    with pytest.raises(UserError, match="run is given twice"):
        read_histories([tmp_path / "run", tmp_path / "run" / ".." / "run"])
