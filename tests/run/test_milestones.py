"""Milestones are written like checkpoints, and once."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mlm_dist.run.background_saver import BackgroundSaver
from mlm_dist.run.checkpoint import find_damage, load_checkpoint
from mlm_dist.run.milestones import save_milestone

RECORD: dict[str, Any] = {"fixed": {"seed": 1, "data.weights": (1.0, 2.0)}, "adjustable": {"optim.lr": 1e-3}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "milestones"


def save(folder: Path, value: float, record: dict[str, Any] = RECORD) -> Path:
    save_milestone(folder, 5, {"step": 5, "model": {"weight": torch.tensor(value)}}, record)
    return folder / "step-00000005"


def value_of(path: Path) -> float:
    return float(load_checkpoint(path)["model"]["weight"])


def test_an_undamaged_milestone_is_not_written_again(folder: Path) -> None:
    written = (save(folder, 1.0) / "state.pt").stat()
    path = save(folder, 2.0)
    assert (path / "state.pt").stat() == written
    assert value_of(path) == 1.0


@pytest.mark.parametrize("damaged", ["state.pt", "manifest.json"])
def test_a_damaged_milestone_is_written_again(damaged: str, folder: Path) -> None:
    (save(folder, 1.0) / damaged).write_bytes(b"{}")
    path = save(folder, 2.0)
    assert find_damage(path) is None
    assert value_of(path) == 2.0


def test_a_milestone_of_other_parameters_is_written_again(folder: Path) -> None:
    save(folder, 1.0)
    assert value_of(save(folder, 2.0, RECORD | {"adjustable": {"optim.lr": 2e-3}})) == 2.0


def test_a_milestone_that_cannot_be_written_is_named_and_does_not_fail_the_run(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saver = BackgroundSaver(tmp_path, keep=1)
    folder.touch()
    saver.save_milestone(folder, 5, {"step": 5})
    saver.wait()
    assert "the milestone of step 5 could not be written (File exists); the older ones" in capsys.readouterr().err
    assert not saver.failed
    shutil.rmtree(tmp_path)
    saver.save(6, {}, {})
    saver.save_milestone(folder, 7, {})
    saver.wait()
    assert saver.failed
