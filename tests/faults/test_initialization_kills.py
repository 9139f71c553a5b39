"""A run that starts from another one, or branches from it, ends in the same bits if it is killed at any moment."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mlm_dist.run.checkpoint import load_checkpoint
from tests.conftest import TINY, start
from tests.faults.conftest import assert_same_run, history, kill_at, run_to_end, train_command, with_script

pytestmark = pytest.mark.slow

DYING = Path(__file__).with_name("dying.py")

# As those of the tiny run, from which a branch continues.
SETTINGS: dict[str, Any] = {
    "model__dropout": 0.0,
    "train__max_iters": TINY["train.max_iters"],
    "train__eval_interval": 10,
    "train__micro_batch_size": "null",
    "checkpoint__interval": 5,
}
# The evaluation of step 35 is the best one, and the run ends at step 50.
ENDS_EARLY: dict[str, Any] = {
    "model__dropout": 0.0,
    "optim__lr": 0.05,
    "optim__schedule": "constant",
    "optim__ema": 0.8,
    "train__micro_batch_size": "null",
    "train__max_iters": 60,
    "train__eval_interval": 5,
    "train__patience": 3,
    "checkpoint__interval": 10,
    "checkpoint__keep": 20,
    "checkpoint__milestones": "[22, 35, 45]",
}
# Each in a run that the one before it left; steps 25, 30 and 35 have a checkpoint as the best ones so far.
KILLS = [
    "checkpoint begins:2",  # of step 25, after the milestone of step 22: it becomes a branch again
    "state written in half:3",  # of milestone 35, after checkpoints 25 and 30
    "checkpoint begins:5",  # of step 50, after milestone 35, checkpoints 35 and 40, milestone 45
]
# In the order in which a run reaches them.
POINTS = ["tokenizer saved", "origin written", "run begun", "evaluated", "checkpoint flushed", "step taken"]


@pytest.mark.parametrize("changes", [{"seed": 5}, {"branch": True}], ids=["weights", "branch"])
def test_a_run_from_another_one_killed_at_any_fault_point_resumes(
    changes: dict[str, Any], run_dir: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    settings = SETTINGS | {"init_from": f"{run_dir}@10"} | changes
    run_to_end(train_command(corpus_folder, tmp_path / "undisturbed", **settings))
    command = train_command(corpus_folder, tmp_path / "killed", **settings)
    for point in POINTS:
        kill_at(point, 7 if point == "step taken" else 1, command, tmp_path / "output")
    run_to_end(command)
    assert_same_run(tmp_path / "killed", tmp_path / "undisturbed")


@pytest.mark.multiprocess
def test_two_processes_start_from_the_same_parameters(
    run_dir: Path, corpus_folder: Path, paragraphs: Path, tmp_path: Path
) -> None:
    settings = SETTINGS | {"init_from": run_dir, "train__max_iters": 10}
    runs = {processes: tmp_path / str(processes) for processes in (1, 2)}
    for processes, run in runs.items():
        run_to_end(train_command(paragraphs, run, processes, **settings))
    for event, expected in zip(*map(history, runs.values()), strict=True):
        assert event == pytest.approx(expected, abs=1e-5)
    assert f"val_loss/{corpus_folder}" in history(runs[2])[0]


@pytest.mark.long
@pytest.mark.multiprocess
def test_four_ranks_with_the_weights_of_a_run_are_killed_three_times(
    run_dir: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    settings = SETTINGS | {"init_from": f"{run_dir}@10", "seed": 5, "optim__ema": 0.9, "train__patience": 2}
    runs = tmp_path / "undisturbed", tmp_path / "killed"
    undisturbed, command = (train_command(corpus_folder, run, 4, **settings) for run in runs)
    run_to_end(undisturbed)
    result = start(with_script(command, DYING, "step taken:7", 1))
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("training 0.0 M parameters") == 4
    assert_same_run(runs[1], runs[0])


@pytest.mark.long
@pytest.mark.multiprocess
@pytest.mark.parametrize("processes", [2, 4])
def test_a_branch_with_average_milestones_and_patience_killed_three_times_ends_like_the_original_run(
    processes: int, corpus_folder: Path, tmp_path: Path
) -> None:
    original, killed = tmp_path / "original", tmp_path / "killed"
    run_to_end(train_command(corpus_folder, original, processes, **ENDS_EARLY))
    branch = ENDS_EARLY | {"init_from": f"{original}@20", "branch": True}
    result = start(with_script(train_command(corpus_folder, killed, processes, **branch), DYING, ",".join(KILLS), 0))
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("training 0.0 M parameters") == 4
    assert (killed / "DONE").read_text() == "35\n"
    assert_same_run(killed, original, branched_at=20)
    milestones = [killed / "milestones" / f"step-000000{step}" for step in (22, 35, 45)]
    assert sorted((killed / "milestones").iterdir()) == milestones
    for path in milestones:
        found, expected = (load_checkpoint(run / "milestones" / path.name)["model"] for run in (killed, original))
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    last_start = (killed / "config.yaml").stat().st_mtime_ns
    assert (milestones[-1] / "state.pt").stat().st_mtime_ns < last_start  # it was not written anew
