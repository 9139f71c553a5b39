"""Runs with every option of the model: they resume exactly, and do not depend on the number of processes."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mlm_dist.run.metrics import read_events
from tests.conftest import Result, tiny_flags, torchrun, verb

pytestmark = pytest.mark.slow

OPTIONS: dict[str, Any] = {
    "model__activation": "geglu",
    "model__qk_norm": True,
    "model__positions": "rope",
    "model__logit_softcap": 30.0,
    "model__tie_embeddings": False,
    "model__embedding_std": 0.1,
    "model__output_std": 0.0,
    "model__query_key_std": 0.2,
    "model__zero_init_projections": True,
    "optim__lr": 0.01,
}
LEARNED: dict[str, Any] = {"model__activation": "relu2", "model__qk_norm": True, "data__documents": "isolated"}
MUON: dict[str, Any] = OPTIONS | {"optim__name": "muon", "optim__ema": 0.9}
NORMUON: dict[str, Any] = OPTIONS | {
    "optim__name": "normuon",
    "optim__weight_decay": 0.5,
    "optim__cautious_weight_decay": True,
}


def losses(run: Path) -> list[float]:
    return [event["loss"] for event in read_events(run / "metrics.jsonl") if "loss" in event]


def check(result: Result) -> None:
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "options", [OPTIONS, LEARNED, MUON, NORMUON], ids=["all", "learned positions", "muon", "normuon"]
)
def test_a_resumed_run_ends_with_the_same_bits(options: dict[str, Any], corpus_folder: Path, tmp_path: Path) -> None:
    run, resumed = tmp_path / "run", tmp_path / "resumed"
    check(verb("train", *tiny_flags(corpus_folder, run, **options)))
    assert losses(run)[-1] < losses(run)[0] - 0.3
    shutil.copytree(run, resumed)
    for path in ("checkpoints/step-00000020", "checkpoints/step-00000030"):
        shutil.rmtree(resumed / path)
    (resumed / "model.pth").unlink()
    result = verb("train", *tiny_flags(corpus_folder, resumed, **options))
    check(result)
    assert losses(resumed) == losses(run)
    states = [torch.load(path / "model.pth", weights_only=True) for path in (run, resumed)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_run_evaluates_capped_logits(corpus_folder: Path, tmp_path: Path) -> None:
    check(verb("train", *tiny_flags(corpus_folder, tmp_path / "run", model__logit_softcap=0.01, optim__lr=0.01)))
    found = [event["val_loss"] for event in read_events(tmp_path / "run" / "metrics.jsonl") if "val_loss" in event]
    assert found == pytest.approx([math.log(300)] * 4, abs=0.021)  # no two logits differ by more than 0.02


def test_micro_batches_do_not_change_the_run(corpus_folder: Path, tmp_path: Path) -> None:
    for name, size in (("whole", 16), ("micro", 4)):
        check(verb("train", *tiny_flags(corpus_folder, tmp_path / name, train__micro_batch_size=size, **OPTIONS)))
    assert losses(tmp_path / "micro") == pytest.approx(losses(tmp_path / "whole"), abs=1e-3)


@pytest.mark.multiprocess
def test_two_processes_compute_the_same_losses_as_one(corpus_folder: Path, tmp_path: Path) -> None:
    check(verb("train", *tiny_flags(corpus_folder, tmp_path / "one", **NORMUON)))
    check(torchrun(2, *tiny_flags(corpus_folder, tmp_path / "two", **NORMUON)))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-3)
