"""If the loss is NaN on one rank, all ranks skip the step. Too many consecutive skipped steps end the run."""

from pathlib import Path

import pytest
import torch

from mlm_dist.data.corpus import Corpus
from mlm_dist.data.sampler import GlobalBatchSampler
from mlm_dist.run.checkpoint import find_newest, load_checkpoint
from tests.conftest import Result, start
from tests.faults.conftest import history, train_command, with_script

pytestmark = pytest.mark.slow

FAULTY = Path(__file__).with_name("faulty.py")
SHORT = {"train__max_iters": 20, "checkpoint__interval": 5, "train__eval_interval": 10}


def train_with_nan(rank: int, first: int, last: int, command: list[str]) -> Result:
    return start(with_script(command, FAULTY, rank, first, last))


@pytest.mark.multiprocess
def test_a_nan_on_one_rank_skips_the_step_on_all_ranks(corpus_folder, tmp_path):
    run_dir = tmp_path / "run"
    result = train_with_nan(1, 7, 8, train_command(corpus_folder, run_dir, processes=2, **SHORT))
    assert result.returncode == 0, result.stderr
    assert "step 7 is skipped: loss nan, grad_norm nan, on rank 1 (1 in a row" in result.stderr
    assert "step 8 is skipped: loss nan, grad_norm nan, on rank 1 (2 in a row" in result.stderr
    skipped = [event for event in history(run_dir) if "skipped" in event]
    assert [(event["step"], event["ranks"], event["in_a_row"]) for event in skipped] == [(7, [1], 1), (8, [1], 2)]
    corpus = Corpus.open(corpus_folder)
    sampler = GlobalBatchSampler(len(corpus.rows("train", 16)), 16, 1337, rank=1, world_size=2)
    assert skipped[0]["rows"] == sampler.select(6).rows.tolist()
    losses = {event["step"]: event["loss"] for event in history(run_dir) if "loss" in event}
    assert losses.keys() == set(range(1, 21))
    assert [step for step, loss in losses.items() if loss is None] == [7, 8]
    assert all(parameter.isfinite().all() for parameter in torch.load(run_dir / "model.pth").values())


def test_a_skipped_step_changes_neither_parameters_nor_optimizer_state(corpus_folder, tmp_path):
    run_dir = tmp_path / "run"
    result = train_with_nan(0, 6, 9, train_command(corpus_folder, run_dir, **SHORT | {"train__max_iters": 9}))
    assert result.returncode == 0, result.stderr
    before, after = (load_checkpoint(run_dir / f"checkpoints/step-{step:08d}") for step in (5, 9))
    assert (before["bad_steps"], after["bad_steps"]) == (0, 4)
    for name, parameter in before["model"].items():
        assert torch.equal(parameter, after["model"][name])
    moments = [state["optimizers"][0]["state"][0] for state in (before, after)]
    assert all(torch.equal(moments[0][key], moments[1][key]) for key in ("step", "exp_avg", "exp_avg_sq"))


@pytest.mark.multiprocess
def test_too_many_consecutive_skipped_steps_end_the_run_without_another_checkpoint(corpus_folder, tmp_path):
    run_dir = tmp_path / "run"
    command = train_command(corpus_folder, run_dir, processes=2, train__max_bad_steps=6, **SHORT)
    result = train_with_nan(0, 8, 20, [part for part in command if "max-restarts" not in part])
    assert result.returncode == 1
    lines = [line for line in result.stderr.splitlines() if line.startswith("mlm_dist: error:")]
    assert len(lines) == 1
    assert "not finite in 6 consecutive steps (last: step 13, loss nan, grad_norm nan" in lines[0]
    assert f'File "{FAULTY.parents[2]}/mlm_dist/' not in result.stderr
    newest = find_newest(run_dir / "checkpoints")
    assert newest == run_dir / "checkpoints/step-00000005"  # not step 10, which is among the skipped steps
    assert not (run_dir / "DONE").exists()


def test_a_resumed_run_keeps_the_count_of_skipped_steps(corpus_folder, tmp_path):
    run_dir = tmp_path / "run"
    command = train_command(corpus_folder, run_dir, train__max_bad_steps=6, **SHORT)
    first = train_with_nan(0, 6, 20, [*command, "--train.max_iters=9"])
    assert first.returncode == 0, first.stderr
    second = train_with_nan(0, 6, 20, command)
    assert second.returncode == 1
    assert "not finite in 6 consecutive steps (last: step 11" in second.stderr
