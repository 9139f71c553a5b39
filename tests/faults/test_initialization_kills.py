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
@pytest.mark.parametrize(
    ("processes", "changes"),
    [(4, {"seed": 5, "optim__ema": 0.9, "train__patience": 2}), (2, {"branch": True})],
    ids=["weights, average and patience on four ranks", "branch on two ranks"],
)
def test_ranks_that_are_killed_three_times_end_in_the_same_bits(
    processes: int, changes: dict[str, Any], run_dir: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    settings = SETTINGS | {"init_from": f"{run_dir}@10", "checkpoint__milestones": "[12, 20]"} | changes
    runs = tmp_path / "undisturbed", tmp_path / "killed"
    undisturbed, command = (train_command(corpus_folder, run, processes, **settings) for run in runs)
    run_to_end(undisturbed)
    result = start(with_script(command, DYING, "step taken", 7, 1))
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("training 0.0 M parameters") == 4
    assert_same_run(runs[1], runs[0])
    for milestone in ("step-00000012", "step-00000020"):
        expected, found = (load_checkpoint(run / "milestones" / milestone)["model"] for run in runs)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
