"""Checkpoints written in the background, by a saver that a state can hold up for as long as a test likes."""

import threading
import time
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from mlm_dist.run.background_saver import BackgroundSaver
from mlm_dist.run.checkpoint import find_damage, list_checkpoints, load_checkpoint


class Obstacle:
    """A value at which writing stops until it is let go, or for a minute."""

    def __init__(self) -> None:
        self._gone = threading.Event()

    def __reduce__(self) -> tuple[object, ...]:
        self._gone.wait(60)
        return OrderedDict, ()

    def let_go(self) -> None:
        self._gone.set()

    def let_go_soon(self) -> None:
        threading.Timer(0.3, self.let_go).start()


@pytest.fixture
def saver(tmp_path: Path) -> BackgroundSaver:
    return BackgroundSaver(tmp_path, keep=3)


def test_training_goes_on_while_a_checkpoint_is_written(saver: BackgroundSaver, tmp_path: Path) -> None:
    obstacle = Obstacle()
    saver.save(1, {"held up": obstacle}, {})
    saver.report()
    assert not list_checkpoints(tmp_path)
    obstacle.let_go_soon()
    saver.wait()
    assert find_damage(tmp_path / "step-00000001") is None
    assert not saver.failed


def test_what_changes_after_a_save_has_begun_is_not_saved(saver: BackgroundSaver, tmp_path: Path) -> None:
    weight, count, val_losses, obstacle = torch.ones(10), [torch.ones(1)], {1: 1.0}, Obstacle()
    saver.save(1, {"held up": obstacle, "weight": weight, "nested": {"count": count}}, val_losses)
    weight.fill_(2.0)
    count[0].fill_(2.0)
    obstacle.let_go()
    saver.wait()
    state = load_checkpoint(tmp_path / "step-00000001")
    assert torch.equal(state["weight"], torch.ones(10))
    assert torch.equal(state["nested"]["count"][0], torch.ones(1))


def test_a_matrix_that_stands_there_twice_is_saved_once_and_parts_of_it_are_themselves(
    saver: BackgroundSaver, tmp_path: Path
) -> None:
    weight = torch.arange(100_000.0)
    saver.save(1, {"model": {"in": weight, "out": weight}, "half": weight[50_000:], "none": torch.ones(0)}, {})
    saver.wait()
    place = tmp_path / "step-00000001"
    state = load_checkpoint(place)
    assert torch.equal(state["model"]["in"], weight)
    assert torch.equal(state["model"]["out"], weight)
    assert torch.equal(state["half"], weight[50_000:])
    assert sum(file.stat().st_size for file in place.iterdir()) < 1.6 * weight.nbytes


def test_one_checkpoint_is_written_after_the_other(saver: BackgroundSaver, tmp_path: Path) -> None:
    obstacle = Obstacle()
    saver.save(1, {"held up": obstacle}, {})
    obstacle.let_go_soon()
    saver.save(2, {}, {})
    assert find_damage(tmp_path / "step-00000001") is None
    saver.wait()
    assert [place.name for place in list_checkpoints(tmp_path)] == ["step-00000002", "step-00000001"]


def test_the_best_and_as_many_of_the_newest_as_asked_for_are_kept(tmp_path: Path) -> None:
    saver = BackgroundSaver(tmp_path, keep=2)
    for step in range(1, 6):
        saver.save(step, {}, {1: 2.0, 2: 1.0, 3: 3.0, 4: 4.0})
    saver.wait()
    assert [place.name for place in list_checkpoints(tmp_path)] == [f"step-0000000{step}" for step in (5, 4, 2)]


def test_a_write_that_fails_is_said_once_and_the_next_one_is_tried(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "checkpoints"
    saver = BackgroundSaver(folder, keep=3)
    saver.save(1, {}, {})
    deadline = time.monotonic() + 60
    while not saver.failed and time.monotonic() < deadline:
        time.sleep(0.01)
        saver.report()
    assert saver.failed
    (line,) = capsys.readouterr().err.splitlines()
    assert "a checkpoint could not be written (No such file or directory)" in line
    folder.mkdir()
    saver.save(2, {}, {})
    saver.wait()
    assert not saver.failed
    assert not capsys.readouterr().err
    assert [place.name for place in list_checkpoints(folder)] == ["step-00000002"]


def test_a_fault_of_ours_is_raised_in_the_trainings_own_thread(saver: BackgroundSaver) -> None:
    saver.save(1, {"unwritable": lambda: None}, {})
    with pytest.raises(Exception, match="pickle"):
        saver.wait()
