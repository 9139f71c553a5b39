"""A run that resumes with another number of processes has the same rows and masks, and computes the same loss."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from mlm_dist.run.checkpoint import find_newest, step_of
from tests.faults.conftest import has_reached, history, run_to_end, running, train_command, wait_for_exit, wait_until

pytestmark = pytest.mark.slow

WITHOUT_DROPOUT: dict[str, Any] = {"model__dropout": 0.0}  # its noise depends on the rank


def stop_at(step: int, command: list[str], run_dir: Path) -> int:
    """Train until about this step, and return the step at which the run stopped."""
    with running(command) as process:
        wait_until(process, has_reached(run_dir, step))
        (run_dir / "STOP").touch()
        code, _, stderr = wait_for_exit(process)
        assert code == 0, stderr
    newest = find_newest(run_dir / "checkpoints")
    assert newest
    return step_of(newest)


def loss_at(step: int, run_dir: Path) -> float:
    (loss,) = [event["loss"] for event in history(run_dir) if event["step"] == step and "loss" in event]
    return float(loss)


@pytest.mark.long
@pytest.mark.multiprocess
def test_a_run_resumes_with_two_then_one_then_four_then_two_processes(corpus_folder, tmp_path):
    run_dir, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    run_to_end(train_command(corpus_folder, undisturbed, **WITHOUT_DROPOUT))

    def command(processes: int, path: Path = run_dir, **overrides: object) -> list[str]:
        return train_command(corpus_folder, path, processes, **WITHOUT_DROPOUT, **overrides)

    for before, after, step in ((2, 1, 40), (1, 4, 100), (4, 2, 160)):
        stopped = stop_at(step, command(before), run_dir)
        same_size = tmp_path / f"same-size-{stopped}"
        shutil.copytree(run_dir, same_size)
        run_to_end(command(before, same_size, train__max_iters=stopped + 1))
        other_size = tmp_path / f"other-size-{stopped}"
        shutil.copytree(run_dir, other_size)
        run_to_end(command(after, other_size, train__max_iters=stopped + 1))
        assert loss_at(stopped + 1, other_size) == pytest.approx(loss_at(stopped + 1, same_size), abs=1e-5)
    run_to_end(command(2))
    assert [event["step"] for event in history(run_dir)] == [event["step"] for event in history(undisturbed)]
    for event, expected in zip(history(run_dir), history(undisturbed), strict=True):
        assert event.get("digest") == expected.get("digest")
        assert event.get("loss", 0) == pytest.approx(expected.get("loss", 0), abs=5e-3)  # Adam amplifies rounding
