"""Early stopping: when improvements count, and what a run leaves that ends early."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import mlm_dist
from mlm_dist.config import Config, TrainConfig
from mlm_dist.distributed import Processes
from mlm_dist.run.checkpoint import load_checkpoint
from mlm_dist.run.metrics import read_events
from mlm_dist.training.patience import Patience, evaluations_without_improvement, is_lowest
from tests.conftest import tiny_flags, torchrun, verb

# At this learning rate, the loss soon goes up and down: it is lowest at step 35, then at step 50.
NOISY: dict[str, Any] = {
    "optim__lr": 0.1,
    "optim__schedule": "constant",
    "train__max_iters": 60,
    "train__eval_interval": 5,
    "checkpoint__interval": 1000,
    "checkpoint__keep": 1,
    "train__patience": 2,
}


@pytest.mark.parametrize(
    ("losses", "min_delta", "count"),
    [
        ({}, 0.0, 0),
        ({0: 5.0}, 0.0, 0),
        ({0: 2.0, 10: 5.0}, 0.0, 1),
        ({10: 5.0, 20: 5.0, 30: 5.1}, 0.0, 2),  # not lower
        ({10: 5.0, 20: 5.1, 30: math.nextafter(5.0, 0)}, 0.0, 0),
        ({10: 5.0, 20: 4.5, 30: 4.0}, 0.5, 0),  # exactly min_delta
        ({10: 5.0, 20: 4.75, 30: 4.5}, 0.5, 0),  # in two evaluations together
        ({10: 5.0, 20: 4.75, 30: 4.625}, 0.5, 2),
        ({30: 5.2, 10: 5.0, 20: 5.1}, 0.0, 2),  # in the order of their steps
    ],
)
def test_evaluations_count_since_the_last_improvement(losses: dict[int, float], min_delta: float, count: int) -> None:
    assert evaluations_without_improvement(losses, min_delta) == count


def test_the_lowest_loss_is_below_all_others() -> None:
    losses = {0: 3.0, 10: 4.0, 20: 2.0, 30: 2.0}
    assert [step for step in (0, 5, 10, 20, 30) if is_lowest(step, losses)] == []
    del losses[30]
    assert [step for step in (0, 5, 10, 20) if is_lowest(step, losses)] == [20]


@pytest.mark.parametrize(("init_from", "counts"), [(None, False), ("runs/novels", True)])
def test_the_evaluation_before_the_first_step_counts_if_the_run_started_from_trained_parameters(
    init_from: str | None, counts: bool
) -> None:
    train = TrainConfig(patience=2, batch_size=8)
    patience = Patience(Config(init_from=init_from, train=train), Processes("cpu", 1.0))
    losses = {0: 1.0, 250: 3.0, 500: 2.0}
    assert [step for step in losses if patience.is_best(step, losses)] == [0 if counts else 500]
    patience.check(500, losses)
    assert patience.is_out == counts


def val_losses(run: Path) -> dict[int, float]:
    return {event["step"]: event["val_loss"] for event in read_events(run / "metrics.jsonl") if "val_loss" in event}


def checkpoints(run: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def early_run(corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has ended early."""
    run = tmp_path_factory.mktemp("early") / "run"
    result = verb("train", *tiny_flags(corpus_folder, run, **NOISY))
    assert (result.returncode, result.stderr) == (0, "")
    assert f"step 45 of 60; a larger train.patience continues it\nparameters: {run}/model.pth, of step 35" in (
        result.stdout
    )
    return run


def test_a_run_without_improvement_ends_with_its_best_parameters(early_run: Path) -> None:
    losses = val_losses(early_run)
    assert list(losses) == list(range(0, 46, 5))
    assert min(losses, key=lambda step: losses[step]) == 35
    assert checkpoints(early_run) == [35, 45]
    model = mlm_dist.load(early_run, "cpu")
    assert model.step == 35
    best = load_checkpoint(early_run / "checkpoints/step-00000035")["model"]
    assert all(torch.equal(parameter, best[name]) for name, parameter in model.encoder.state_dict().items())
    assert not (early_run / "STOPPED").exists()
    assert (early_run / "plots/curves.png").exists()


def test_the_report_shows_the_evaluation_of_the_best_parameters(early_run: Path, tmp_path: Path) -> None:
    assert verb("plot", "--run", early_run, "--out", tmp_path).returncode == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "A run of mlm_dist, finished, with the parameters of step 35" in page
    assert f">{val_losses(early_run)[35]:.3f}<" in page
    assert "nats per token, at step 35" in page


def test_the_same_command_does_not_continue_it_but_a_larger_patience_does(
    early_run: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(early_run, tmp_path / "run"))
    kept = [run / name for name in ("metrics.jsonl", "model.pth", "DONE")]
    before = [path.read_bytes() for path in kept]
    result = verb("train", *tiny_flags(corpus_folder, run, **NOISY))
    assert (result.returncode, result.stderr) == (0, "")
    assert "step 45/60" not in result.stdout
    assert "so the run ends at step 45 of 60" in result.stdout
    assert [path.read_bytes() for path in kept] == before

    patient = tiny_flags(corpus_folder, run, **(NOISY | {"train__patience": 100}))
    result = verb("train", *patient)
    assert result.returncode == 0, result.stderr
    assert "done: 60 steps" in result.stdout  # the last step is reached, so its parameters are the final ones
    assert mlm_dist.load(run, "cpu").step == 60
    assert list(val_losses(run)) == list(range(0, 61, 5))


def test_without_the_best_checkpoint_the_next_best_is_final(
    early_run: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(early_run, tmp_path / "run"))
    (run / "checkpoints/step-00000035/state.pt").write_bytes(b"")
    result = verb("train", *tiny_flags(corpus_folder, run, **NOISY))
    assert result.returncode == 0, result.stderr
    assert f"of step 45 with validation loss {val_losses(run)[45]:.3f}" in result.stdout
    assert "step-00000035 is skipped: state.pt does not match manifest.json" in result.stderr
    assert mlm_dist.load(run, "cpu").step == 45


def test_an_adaptation_that_makes_things_worse_ends_with_the_parameters_of_its_source(
    run_dir: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    run, settings = tmp_path / "run", NOISY | {"init_from": run_dir, "optim__lr": 1.0, "optim__ema": 0.5}
    result = verb("train", *tiny_flags(corpus_folder, run, **settings))
    assert result.returncode == 0, result.stderr
    losses = val_losses(run)
    assert list(losses) == [0, 5, 10]
    assert f"of step 0 with validation loss {losses[0]:.3f}" in result.stdout
    assert checkpoints(run) == [0, 10]
    model, source = (mlm_dist.load(path, "cpu") for path in (run, run_dir))
    assert (model.step, (run / "DONE").read_text()) == (0, "0\n")
    assert all(
        torch.equal(value, source.encoder.state_dict()[name]) for name, value in model.encoder.state_dict().items()
    )
    assert mlm_dist.load(run, "cpu", step="best").step == 0


@pytest.mark.multiprocess
def test_ranks_agree_although_only_one_knows_the_losses_before_a_resume(corpus_folder: Path, tmp_path: Path) -> None:
    settings = {"train__min_delta": 1.0, "train__patience": 3, "train__max_iters": 25, "optim__schedule": "constant"}
    result = verb("train", *tiny_flags(corpus_folder, tmp_path / "run", **settings))
    assert result.returncode == 0, result.stderr
    result = torchrun(2, *tiny_flags(corpus_folder, tmp_path / "run", **(settings | {"train__max_iters": 60})))
    assert result.returncode == 0, result.stderr
    assert list(val_losses(tmp_path / "run")) == [0, 10, 20, 25, 30]
    assert (tmp_path / "run/DONE").read_text() == "30\n"
