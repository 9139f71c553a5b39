"""A run that is killed at any moment resumes with the same command and ends in the same bits, each step logged once."""

import contextlib
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from mlm_dist.run.checkpoint import find_damage, load_checkpoint
from tests.conftest import start
from tests.faults.conftest import (
    assert_same_run,
    has_reached,
    kill_at,
    newest_step,
    run_to_end,
    running,
    train_command,
    wait_until,
    with_script,
)

pytestmark = pytest.mark.slow

DYING = Path(__file__).with_name("dying.py")
# Fault points, and how often a run reaches each of them at most between two checkpoints.
POINTS = {
    "step begins": 45,
    "step taken": 45,
    "resume begins": 1,
    "resumed": 1,
    "tokenizer saved": 1,
    "run begun": 1,
    "recorder opens": 1,
    "later events dropped": 1,
    "evaluation batch begins": 30,
    "evaluated": 2,
    "event goes to a sink": 20,
    "event recorded": 20,
    "checkpoint begins": 2,
    "state written in half": 2,
    "state flushed": 2,
    "checkpoint flushed": 2,
    "checkpoint renamed": 2,
    "checkpoint saved": 2,
}
AT_THE_END = ["results begin", "model.pth written in half", "model.pth written", "plot begins", "plotted"]


def test_a_run_killed_at_any_fault_point_resumes(corpus_folder, reference_run, tmp_path):
    run_dir = tmp_path / "run"
    command = train_command(corpus_folder, run_dir)
    rng = random.Random(1)
    for point in rng.sample(list(POINTS), len(POINTS)):
        kill_at(point, rng.randint(1, POINTS[point]), command, tmp_path / "output")
    run_to_end(command)
    assert_same_run(run_dir, reference_run)


def test_a_run_killed_while_it_writes_its_results_resumes(corpus_folder, reference_run, tmp_path):
    run_dir = tmp_path / "run"
    command = train_command(corpus_folder, run_dir)
    for point in AT_THE_END:
        kill_at(point, 1, command, tmp_path / "output")
        assert not (run_dir / "DONE").exists()
    run_to_end(command)
    assert_same_run(run_dir, reference_run)
    assert not [path for path in run_dir.rglob("*") if "partial" in path.name]


def test_a_killed_run_has_the_same_average_and_the_same_milestones(corpus_folder, tmp_path):
    settings: dict[str, Any] = {
        "optim__ema": 0.9,
        "train__max_iters": 30,
        "train__eval_interval": 0,
        "checkpoint__interval": 10,
        "checkpoint__milestones": "[5, 10, 21, 1Mw]",
    }
    undisturbed, run_dir = tmp_path / "undisturbed", tmp_path / "run"
    run_to_end(train_command(corpus_folder, undisturbed, **settings))
    command = train_command(corpus_folder, run_dir, **settings)
    kill_at("state written in half", 1, command, tmp_path / "output")  # milestone 5
    kill_at("checkpoint begins", 3, command, tmp_path / "output")  # the checkpoint of step 10, after its milestone
    assert not list(run_dir.glob("checkpoints/step-*"))
    assert [path.name for path in sorted(run_dir.glob("milestones/step-*"))] == ["step-00000005", "step-00000010"]
    written = (run_dir / "milestones/step-00000010/state.pt").stat()
    kill_at("checkpoint begins", 2, command, tmp_path / "output")  # the checkpoint of step 20
    kill_at("state written in half", 2, command, tmp_path / "output")  # milestone 21
    assert [path.name for path in (run_dir / "milestones").glob(".*")] == [".step-00000021.partial"]
    run_to_end(command)
    assert_same_run(run_dir, undisturbed)
    assert (run_dir / "milestones/step-00000010/state.pt").stat() == written
    for path in ["milestones/step-00000005", "milestones/step-00000010", "milestones/step-00000021"]:
        states = [load_checkpoint(run / path)["model"] for run in (run_dir, undisturbed)]
        assert find_damage(run_dir / path) is None
        assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert not [path for path in run_dir.rglob("*") if "partial" in path.name]


@pytest.mark.long
def test_a_run_killed_from_outside_at_any_time_resumes(corpus_folder, reference_run, tmp_path):
    run_dir = tmp_path / "run"
    command = train_command(corpus_folder, run_dir)
    rng = random.Random(2)
    for _ in range(5):
        with running(command) as process, contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0.1, 3.0))  # while Python and torch start, or soon after
            pytest.fail("the run ended before it was killed")
        with running(command) as process:
            wait_until(process, has_reached(run_dir, min(newest_step(run_dir) + rng.randint(1, 40), 239)))
    run_to_end(command)
    assert_same_run(run_dir, reference_run)


@pytest.mark.long
def test_a_killed_run_of_several_epochs_in_bf16_resumes(corpus_folder, tmp_path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    settings: dict[str, Any] = {
        "precision": "bf16",
        "train__batch_size": 512,
        "train__micro_batch_size": 128,
        "train__max_iters": 60,
        "train__log_interval": 3,
        "checkpoint__interval": 13,
        "masking__replacement": "80/10/10",
    }
    run_to_end(train_command(corpus_folder, undisturbed, **settings))
    command = train_command(corpus_folder, killed, **settings)
    with running(command) as process:
        wait_until(process, has_reached(killed, 30))
    run_to_end(command)
    assert_same_run(killed, undisturbed)


@pytest.mark.multiprocess
def test_a_run_resumes_after_all_ranks_and_torchrun_were_killed(corpus_folder, two_rank_reference, tmp_path):
    run_dir = tmp_path / "run"
    command = train_command(corpus_folder, run_dir, processes=2)
    for step in (25, 137):
        with running(command) as process:  # on exit, kills torchrun and all ranks
            wait_until(process, has_reached(run_dir, step))
    run_to_end(command)
    assert_same_run(run_dir, two_rank_reference)


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("point", "call", "rank", "store"),
    [
        pytest.param("step begins", 70, 1, "torchrun's", marks=pytest.mark.long),
        pytest.param("step begins", 33, 0, "rank 0's", marks=pytest.mark.long),
        ("micro-batch begins", 80, 1, "rank 0's"),
        pytest.param("checkpoint flushed", 3, 0, "torchrun's", marks=pytest.mark.long),
    ],
    ids=["step of rank 1", "step of rank 0", "micro-batch of rank 1", "checkpoint"],
)
def test_torchrun_restarts_all_ranks_when_one_is_killed(
    point, call, rank, store, corpus_folder, two_rank_reference, tmp_path
):
    run_dir = tmp_path / "run"
    command = with_script(train_command(corpus_folder, run_dir, processes=2), DYING, f"{point}:{call}", rank)
    result = start(command, TORCH_DISABLE_SHARE_RDZV_TCP_STORE=str(int(store == "rank 0's")))
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("training 0.0 M parameters") == 4  # killed three times
    assert_same_run(run_dir, two_rank_reference)
