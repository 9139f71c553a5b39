"""SIGKILL at any moment: the same command goes on and ends in the same bits, with every step in the metrics once."""

import contextlib
import random
import signal
import subprocess
from pathlib import Path

import pytest

from tests.conftest import start
from tests.faults.conftest import (
    assert_same_run,
    complete,
    has_reached,
    in_its_place,
    newest_step,
    running,
    train_command,
    wait_until,
)

pytestmark = pytest.mark.slow

DYING = Path(__file__).with_name("dying.py")
# Where, and how often at most a run from one checkpoint to the next gets there.
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


def test_killed_in_start_up_steps_evaluations_and_saves(corpus_folder, unbroken, tmp_path):
    run_dir = tmp_path / "run"
    command = train_command(corpus_folder, run_dir)
    chance = random.Random(1)
    for point in chance.sample(list(POINTS), len(POINTS)):
        result = start(in_its_place(command, DYING, point, chance.randint(1, POINTS[point]), 0))
        assert result.returncode == -signal.SIGKILL, (point, result.stdout, result.stderr)
        assert "Traceback" not in result.stderr
    complete(command)
    assert_same_run(run_dir, unbroken)


def test_killed_while_results_are_written(corpus_folder, unbroken, tmp_path):
    run_dir = tmp_path / "run"
    command = train_command(corpus_folder, run_dir)
    for point in AT_THE_END:
        assert start(in_its_place(command, DYING, point, 1, 0)).returncode == -signal.SIGKILL, point
        assert not (run_dir / "DONE").exists()
    complete(command)
    assert_same_run(run_dir, unbroken)
    assert not [path for path in run_dir.rglob("*") if "partial" in path.name]


def test_killed_from_outside_at_any_time(corpus_folder, unbroken, tmp_path):
    run_dir = tmp_path / "run"
    command = train_command(corpus_folder, run_dir)
    chance = random.Random(2)
    for _ in range(5):
        with running(command) as process, contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(chance.uniform(0.1, 3.0))  # while Python and torch start, or soon after
            pytest.fail("it has ended")
        with running(command) as process:
            wait_until(process, has_reached(run_dir, min(newest_step(run_dir) + chance.randint(1, 40), 239)))
    complete(command)
    assert_same_run(run_dir, unbroken)


def test_killed_in_a_run_of_many_epochs_in_low_precision(corpus_folder, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    many = {"precision": "bf16", "train__batch_size": 512, "train__max_iters": 60, "checkpoint__interval": 13}
    settings = many | {"train__micro_batch_size": 128, "train__log_interval": 3, "masking__replacement": "80/10/10"}
    complete(train_command(corpus_folder, whole, **settings))
    command = train_command(corpus_folder, killed, **settings)
    with running(command) as process:
        wait_until(process, has_reached(killed, 30))
    complete(command)
    assert_same_run(killed, whole)


@pytest.mark.multiprocess
def test_all_ranks_and_torchrun_killed(corpus_folder, unbroken_pair, tmp_path):
    run_dir = tmp_path / "run"
    command = train_command(corpus_folder, run_dir, processes=2)
    for step in (25, 137):
        with running(command) as process:  # which ends in kill_all
            wait_until(process, has_reached(run_dir, step))
    complete(command)
    assert_same_run(run_dir, unbroken_pair)


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("point", "call", "rank", "store"),
    [
        ("step begins", 70, 1, "torchrun's"),
        ("step begins", 33, 0, "rank 0's"),
        ("micro-batch begins", 80, 1, "rank 0's"),
        ("checkpoint flushed", 3, 0, "torchrun's"),
    ],
    ids=["a step of rank 1", "a step of rank 0", "between micro-batches of rank 1", "a save"],
)
def test_torchrun_starts_all_ranks_again_when_one_is_killed(
    point, call, rank, store, corpus_folder, unbroken_pair, tmp_path
):
    run_dir = tmp_path / "run"
    command = in_its_place(train_command(corpus_folder, run_dir, processes=2), DYING, point, call, rank)
    result = start(command, TORCH_DISABLE_SHARE_RDZV_TCP_STORE=str(int(store == "rank 0's")))
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("training 0.0 M parameters") == 4  # killed three times
    assert_same_run(run_dir, unbroken_pair)
