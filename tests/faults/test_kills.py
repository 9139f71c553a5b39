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
STEP = "mlm_dist.training.trainer:Trainer.train_step"
FORWARD = "mlm_dist.training.trainer:autocast"
# Where, and how many calls of it a run from one checkpoint to the next survives at most.
MOMENTS = [
    (STEP, 45, "before"),
    (STEP, 45, "after"),
    ("mlm_dist.training.resume:resume", 1, "before"),
    ("mlm_dist.training.resume:resume", 1, "after"),
    ("mlm_dist.run.run_dir:RunDir.begin", 1, "before"),
    ("mlm_dist.run.run_dir:RunDir.begin", 1, "after"),
    ("mlm_dist.run.recorder:drop_later_events", 1, "before"),
    ("mlm_dist.run.recorder:drop_later_events", 1, "after"),
    ("mlm_dist.evaluation:loss_and_hits", 30, "before"),
    ("mlm_dist.training.trainer:Trainer.evaluate", 2, "after"),
    ("mlm_dist.run.metrics:MetricsFile.add", 20, "before"),
    ("mlm_dist.run.metrics:MetricsFile.add", 20, "after"),
    ("mlm_dist.run.checkpoint:write", 2, "before"),
    ("mlm_dist.run.checkpoint:write", 2, "amid"),
    ("mlm_dist.run.checkpoint:write", 2, "after"),
    ("mlm_dist.run.checkpoint:flush", 6, "before"),  # between state, manifest, rename
    ("mlm_dist.run.checkpoint:flush", 6, "after"),
    ("mlm_dist.run.checkpoint:find_expired", 3, "after"),
]
AT_THE_END = [
    ("mlm_dist.training.trainer:write", "before"),
    ("mlm_dist.training.trainer:write", "amid"),
    ("mlm_dist.plots.curves:draw_curves", "before"),
    ("mlm_dist.plots.curves:draw_curves", "after"),
]


def test_killed_in_start_up_steps_evaluations_and_saves(corpus_folder, unbroken, tmp_path):
    run_dir = tmp_path / "run"
    command = train_command(corpus_folder, run_dir)
    chance = random.Random(1)
    for place, calls, moment in chance.sample(MOMENTS, len(MOMENTS)):
        result = start(in_its_place(command, DYING, place, chance.randint(1, calls), moment, 0))
        assert result.returncode == -signal.SIGKILL, (place, moment, result.stdout, result.stderr)
        assert "Traceback" not in result.stderr
    complete(command)
    assert_same_run(run_dir, unbroken)


def test_killed_while_results_are_written(corpus_folder, unbroken, tmp_path):
    run_dir = tmp_path / "run"
    command = train_command(corpus_folder, run_dir)
    for place, moment in AT_THE_END:
        assert start(in_its_place(command, DYING, place, 1, moment, 0)).returncode == -signal.SIGKILL
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
    ("place", "call", "rank", "store"),
    [
        (STEP, 70, 1, "torchrun's"),
        (STEP, 33, 0, "rank 0's"),
        (FORWARD, 80, 1, "rank 0's"),
        ("mlm_dist.run.checkpoint:flush", 9, 0, "torchrun's"),
    ],
    ids=["a step of rank 1", "a step of rank 0", "between micro-batches of rank 1", "a save"],
)
def test_torchrun_starts_all_ranks_again_when_one_is_killed(
    place, call, rank, store, corpus_folder, unbroken_pair, tmp_path
):
    run_dir = tmp_path / "run"
    command = in_its_place(train_command(corpus_folder, run_dir, processes=2), DYING, place, call, "before", rank)
    result = start(command, TORCH_DISABLE_SHARE_RDZV_TCP_STORE=str(int(store == "rank 0's")))
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("training 0.0 M parameters") == 4  # killed three times
    assert_same_run(run_dir, unbroken_pair)
