"""A run that ends early is killed around its best and its last evaluation, and ends like an undisturbed one."""

from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import assert_same_run, kill_at, run_to_end, train_command

pytestmark = pytest.mark.slow

# The best evaluation is that of step 35, and the run ends at step 45.
NOISY: dict[str, Any] = {
    "model__dropout": 0.0,
    "optim__lr": 0.1,
    "optim__schedule": "constant",
    "train__micro_batch_size": "null",
    "train__max_iters": 60,
    "train__eval_interval": 5,
    "checkpoint__interval": 1000,
    "train__patience": 2,
}
# Each kill hits the run that the one before it left.
KILLS = [
    ("checkpoint flushed", 7),  # of step 35: every evaluation so far was better than the one before
    ("checkpoint renamed", 1),
    ("evaluated", 2),  # at step 45
    ("checkpoint renamed", 1),  # of step 45
    ("model.pth written in half", 1),
    ("plotted", 1),
]


def test_a_run_that_ends_early_is_killed_around_the_decision(corpus_folder, tmp_path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    run_to_end(train_command(corpus_folder, undisturbed, **NOISY))
    assert (undisturbed / "DONE").read_text() == "35\n"
    command = train_command(corpus_folder, killed, **NOISY)
    for point, call in KILLS:
        kill_at(point, call, command, tmp_path / "output")
        assert not (killed / "DONE").exists()
    assert "ends at step 45 of 60" in run_to_end(command)
    assert_same_run(killed, undisturbed)
    assert (killed / "DONE").read_text() == "35\n"


@pytest.mark.long
def test_a_run_whose_source_is_better_is_killed_around_its_first_evaluation(
    run_dir: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    settings = NOISY | {"init_from": run_dir, "optim__lr": 1.0, "optim__ema": 0.5}
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    run_to_end(train_command(corpus_folder, undisturbed, **settings))
    command = train_command(corpus_folder, killed, **settings)
    for point, call in [
        ("evaluated", 1),
        ("state written in half", 1),  # of step 0
        ("checkpoint renamed", 1),
        ("evaluated", 2),  # at step 5
        ("checkpoint renamed", 1),  # of step 10
        ("model.pth written in half", 1),
    ]:
        kill_at(point, call, command, tmp_path / "output")
        assert not (killed / "DONE").exists()
    assert "ends at step 10 of 60" in run_to_end(command)
    assert_same_run(killed, undisturbed)
    assert (killed / "DONE").read_text() == "0\n"
