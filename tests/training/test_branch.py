"""A branch continues a run from a checkpoint in another run directory, optimizer included."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mlm_dist.run.metrics import Event, read_events
from tests.conftest import Result, tiny_flags, verb

pytestmark = pytest.mark.slow


def branch(source: object, corpus: Path, run: Path, **changes: Any) -> Result:
    """Train a branch. The tiny run of 30 steps decays after step 18."""
    return verb("train", *tiny_flags(corpus, run, init_from=source, branch=True, **changes))


def same_parameters(run: Path, other: Path) -> bool:
    first, second = (torch.load(path / "model.pth") for path in (run, other))
    return all(torch.equal(first[name], second[name]) for name in first)


def without_times(events: list[Event]) -> list[Event]:
    return [event | {"seconds": 0, "tokens_per_second": 0} for event in events]


@pytest.mark.parametrize("step", [10, 20])
def test_a_branch_with_the_same_keys_ends_in_the_same_bits(run_dir, corpus_folder, tmp_path, step):
    result = branch(f"{run_dir}@{step}", corpus_folder, tmp_path / "branch")
    assert result.returncode == 0, result.stderr
    assert same_parameters(tmp_path / "branch", run_dir)
    before, after = (without_times(read_events(run / "metrics.jsonl")) for run in (run_dir, tmp_path / "branch"))
    assert after == [event for event in before if event["step"] >= step + ("val_loss" not in event)]


def test_a_branch_of_another_length_decays_from_the_peak(run_dir, corpus_folder, tmp_path):
    result = branch(f"{run_dir}@10", corpus_folder, tmp_path / "branch", train__max_iters=20)
    assert result.returncode == 0, result.stderr
    assert "has train.max_iters 20, not 30" in result.stdout
    rates = {
        event["step"]: event["lr"] for event in read_events(tmp_path / "branch" / "metrics.jsonl") if "lr" in event
    }
    assert min(rates) == 11
    assert rates[12] == 1e-3 > rates[15] > rates[20] > 0


def test_a_branch_resumes_without_its_source(run_dir, corpus_folder, tmp_path):
    source = Path(shutil.copytree(run_dir, tmp_path / "source"))
    assert branch(f"{source}@10", corpus_folder, tmp_path / "branch", train__max_iters=20).returncode == 0
    shutil.rmtree(source)
    assert branch(f"{source}@10", corpus_folder, tmp_path / "branch", train__max_iters=25).returncode == 0


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("@20", {"train__max_iters": 40}, "the learning rate of this run decays from step 18 on"),
        ("@10", {"seed": 5}, "was trained with seed 1337, not 5: a branch needs the same values"),
        ("@10", {"train__max_iters": 9}, "is beyond train.max_iters 9"),
        ("/model.pth", {}, "branch: true needs a checkpoint, with the state of the optimizer"),
        ("@11", {}, "has no checkpoint of step 11; it has those of 10, 20, 30"),
    ],
)
def test_a_branch_that_is_not_possible_is_refused(run_dir, corpus_folder, tmp_path, name, changes, message):
    result = branch(f"{run_dir}{name}", corpus_folder, tmp_path / "branch", **changes)
    assert result.returncode == 2
    [line] = result.stderr.splitlines()
    assert message in line
    assert not (tmp_path / "branch").exists()


def test_a_branch_of_nothing_is_refused(corpus_folder, tmp_path):
    result = verb("train", *tiny_flags(corpus_folder, tmp_path / "branch", branch=True))
    assert result.returncode == 2
    assert "branch: true needs init_from RUN@STEP" in result.stderr


def test_a_branch_of_the_last_step_is_a_finished_run_of_its_own(run_dir, corpus_folder, tmp_path):
    result = branch(f"{run_dir}@30", corpus_folder, tmp_path / "branch")
    assert result.returncode == 0, result.stderr
    assert same_parameters(tmp_path / "branch", run_dir)
    assert (tmp_path / "branch" / "checkpoints" / "step-00000030").is_dir()
