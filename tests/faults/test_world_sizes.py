"""A run that resumes with another number of processes has the same rows and masks, and computes the same loss."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mlm_dist.run.checkpoint import find_newest, load_checkpoint, model_parameters, step_of
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


@pytest.mark.multiprocess
def test_the_average_and_the_milestones_are_the_same_with_two_processes(corpus_folder, tmp_path):
    settings: dict[str, Any] = {
        **WITHOUT_DROPOUT,
        "train__max_iters": 12,
        "optim__ema": 0.5,
        "checkpoint__milestones": "[5, 10, 12]",
        "checkpoint__interval": 10,
    }
    one, two = tmp_path / "one", tmp_path / "two"
    run_to_end(train_command(corpus_folder, one, **settings))
    shutil.copytree(one, two)
    for path in ["checkpoints/step-00000012", "milestones/step-00000010", "milestones/step-00000012"]:
        shutil.rmtree(two / path)
    run_to_end(train_command(corpus_folder, two, processes=2, **settings))  # from step 10

    def parameters(run: Path, path: str) -> dict[str, torch.Tensor]:
        return model_parameters(load_checkpoint(run / path))

    # At step 10 the average is that of the checkpoint, bit for bit; after it, sums are rounded differently.
    for path, atol in [("milestones/step-00000010", 0), ("milestones/step-00000012", 1e-4)]:
        found, expected = parameters(two, path), parameters(one, path)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=atol)
    assert torch.equal(
        parameters(two, "milestones/step-00000010")["output.weight"],
        parameters(two, "checkpoints/step-00000010")["output.weight"],
    )
    losses = [[event["val_loss"] for event in history(run) if "val_loss" in event] for run in (one, two)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)


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
