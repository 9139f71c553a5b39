"""Kernels that fail on any rank are switched off on all, before the first step. They are stand-ins on a CPU."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mlm_dist.model import kernels
from mlm_dist.run.metrics import read_events
from mlm_dist.training import compilation
from tests.conftest import Result, start, tiny_flags, verb
from tests.model import stand_in_kernels
from tests.model.stand_in_kernels import fail

ALL = {"loss", "embedding", "norm", "attention", "feed-forward"}
FORWARD = {
    "loss": "loss_kernel.replace_by_gradient",
    "embedding": "embedding_kernel.look_up",
    "norm": "norm_kernel.add_norm",
    "attention": "attention_kernel.attend",
    "feed-forward": "relu_kernel.gradient_before_relu",
}
WRITERS = [  # functions whose first result has no other name
    "loss_kernel.product",
    "embedding_kernel.look_up",
    "norm_kernel.add_norm_backward",
    "attention_kernel.attend",
    "relu_kernel.gradient_before_relu",
]
# Heads are of a size that short attention takes.
RUN = {"precision": "bf16", "model__embedding_dim": 32, "train__max_iters": 4, "train__eval_interval": 2}
WARNING = "mlm_dist: Triton kernels that fail here are switched off, and steps take longer: "


def losses(folder: Path) -> list[float]:
    events = read_events(folder / "metrics.jsonl")
    found = [event[key] for event in events for key in ("loss", "val_loss") if key in event]
    assert len(found) == 4 + 3
    return found


Train = Callable[..., Result]


@pytest.fixture
def train(corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Trains in bf16 with the stand-ins."""
    stand_in_kernels.install(monkeypatch)

    def train(name: str, **overrides: object) -> Result:
        result = verb("train", *tiny_flags(corpus_folder, tmp_path / name, **{**RUN, **overrides}))
        assert result.returncode == 0, result.stderr
        return result

    return train


@pytest.fixture(scope="module")
def without(corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of a run by torch's operations."""
    folder = tmp_path_factory.mktemp("without") / "run"
    with pytest.MonkeyPatch.context() as patch:
        stand_in_kernels.install(patch)
        patch.setattr(kernels, "can_run", lambda device: False)
        result = verb("train", *tiny_flags(corpus_folder, folder, **RUN))
    assert result.returncode == 0, result.stderr
    assert "Triton" not in result.stderr
    return losses(folder)


def test_another_run_of_the_process_uses_kernels_that_one_has_switched_off(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(f"mlm_dist.model.{FORWARD['norm']}", fail)
        train("first")
    assert kernels.switched_off() == {"norm"}
    train("second")
    assert not kernels.switched_off()


def test_a_run_with_right_kernels_uses_them_all_and_warns_of_nothing(
    train: Train, tmp_path: Path, without: list[float]
) -> None:
    assert "Triton" not in train("run").stderr
    assert not kernels.switched_off()
    assert losses(tmp_path / "run") == pytest.approx(without, rel=2e-3)
    assert losses(tmp_path / "run") != without


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_run_whose_kernel_raises_an_error_warns_once_and_goes_on(
    name: str, train: Train, tmp_path: Path, without: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"mlm_dist.model.{FORWARD[name]}", fail)
    result = train("run")
    assert result.stderr.count(f"{WARNING}{name}: RuntimeError: no such instruction\n") == 1
    assert result.stderr.count("Triton") == 1
    assert kernels.switched_off() == {name}
    assert losses(tmp_path / "run") == pytest.approx(without, rel=2e-3)


@pytest.mark.parametrize("factor", [1.02, math.nan])
def test_a_run_whose_kernels_are_all_wrong_has_the_losses_of_one_without_kernels(
    factor: float, train: Train, tmp_path: Path, without: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in WRITERS:
        damage(name, factor, monkeypatch)
    result = train("run")
    assert result.stderr.count(WARNING) == result.stderr.count("Triton") == 1
    assert kernels.switched_off() == ALL
    assert losses(tmp_path / "run") == without


def damage(name: str, factor: float, patch: pytest.MonkeyPatch) -> None:
    """Multiply what a stand-in returns first by a factor."""
    module, function = name.split(".")
    right = getattr(sys.modules[f"mlm_dist.model.{module}"], function)

    def call(*arguments: Any) -> Any:
        result = right(*arguments)
        return (result[0] * factor, *result[1:]) if isinstance(result, tuple) else result * factor

    patch.setattr(f"mlm_dist.model.{name}", call)


def test_the_shapes_of_phases_and_of_evaluations_are_checked_before_they_are_used(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = []
    right = sys.modules["mlm_dist.model.attention_kernel"].attend

    def attend(query: torch.Tensor, *rest: Any) -> Any:
        checked.append(rest[0].shape[1])
        if rest[0].shape[1] == 16:
            raise RuntimeError("too long")
        return right(query, *rest)

    monkeypatch.setattr("mlm_dist.model.attention_kernel.attend", attend)
    phases = '[{"steps": 3, "batch_size": 8, "row_length": 8}]'
    result = train("run", train__phases=phases)
    assert result.stderr.count(f"{WARNING}attention: RuntimeError: too long\n") == 1
    assert checked[0] == 8
    assert checked.count(16) == 1  # before the first evaluation, which reads whole rows
    assert kernels.switched_off() == {"attention"}


@pytest.mark.slow
def test_a_compiled_run_leaves_out_the_kernels_that_are_switched_off(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    for name in FORWARD.values():
        monkeypatch.setattr(f"mlm_dist.model.{name}", fail)
    result = train("run", compile="on")
    torch._dynamo.reset()
    assert result.stderr.count(WARNING) == 1
    assert kernels.switched_off() == ALL


@pytest.mark.multiprocess
def test_kernels_that_fail_on_one_rank_are_switched_off_on_both(
    corpus_folder: Path, tmp_path: Path, without: list[float]
) -> None:
    script = str(Path(__file__).with_name("half_kernels.py"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", script]
    result = start([*command, *tiny_flags(corpus_folder, tmp_path / "run", **RUN)])
    assert result.returncode == 0, result.stderr
    assert result.stderr.count(f"{WARNING}norm, attention: RuntimeError: no such instruction (rank 1)\n") == 1
    assert result.stderr.count("Triton") == 1
    assert all(f"rank {rank}: ['attention', 'norm']\n" in result.stdout for rank in range(2))
    assert losses(tmp_path / "run") == pytest.approx(without, rel=2e-3)
