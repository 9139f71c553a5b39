"""A run that goes on with another number of processes sees the same rows and masks, and computes the same loss."""

import shutil
from pathlib import Path

import pytest

from mlm_dist.run.checkpoint import find_newest, step_of
from tests.faults.conftest import complete, end, has_reached, history, running, train_command, wait_until

pytestmark = pytest.mark.slow

WITHOUT_DROPOUT = {"model__dropout": 0.0}  # whose noise is drawn by each rank for its own rows


def stop_at(step: int, command: list[str], run_dir: Path) -> int:
    """Train until about that step; return the one at which the run was stopped."""
    with running(command) as process:
        wait_until(process, has_reached(run_dir, step))
        (run_dir / "STOP").touch()
        code, _, stderr = end(process)
        assert code == 0, stderr
    newest = find_newest(run_dir / "checkpoints")
    assert newest
    return step_of(newest)


def loss_at(step: int, run_dir: Path) -> float:
    (loss,) = [event["loss"] for event in history(run_dir) if event["step"] == step and "loss" in event]
    return float(loss)


@pytest.mark.multiprocess
def test_two_then_one_then_four_then_two_processes(corpus_folder, tmp_path):
    run_dir, whole = tmp_path / "run", tmp_path / "whole"
    complete(train_command(corpus_folder, whole, **WITHOUT_DROPOUT))

    def command(processes: int, path: Path = run_dir, **overrides: object) -> list[str]:
        return train_command(corpus_folder, path, processes, **WITHOUT_DROPOUT, **overrides)

    for before, after, step in ((2, 1, 40), (1, 4, 100), (4, 2, 160)):
        change = stop_at(step, command(before), run_dir)
        unchanged = tmp_path / f"unchanged-{change}"
        shutil.copytree(run_dir, unchanged)
        complete(command(before, unchanged, train__max_iters=change + 1))
        changed = tmp_path / f"changed-{change}"
        shutil.copytree(run_dir, changed)
        complete(command(after, changed, train__max_iters=change + 1))
        assert loss_at(change + 1, changed) == pytest.approx(loss_at(change + 1, unchanged), abs=1e-5)
    complete(command(2))
    assert [event["step"] for event in history(run_dir)] == [event["step"] for event in history(whole)]
    for event, expected in zip(history(run_dir), history(whole), strict=True):
        assert event.get("digest") == expected.get("digest")
        assert event.get("loss", 0) == pytest.approx(expected.get("loss", 0), abs=5e-3)  # rounding that Adam amplifies
