"""Checkpoints written in the background. A value in the state can block the writer for as long as a test needs."""

import threading
import time
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from mlm_dist.run.background_saver import BackgroundSaver
from mlm_dist.run.checkpoint import find_damage, list_checkpoints, load_checkpoint


class Blocker:
    """A value that blocks the writer until it is released, for at most a minute."""

    def __init__(self) -> None:
        self._released = threading.Event()

    def __reduce__(self) -> tuple[object, ...]:
        self._released.wait(60)
        return OrderedDict, ()

    def release(self) -> None:
        self._released.set()

    def release_soon(self) -> None:
        threading.Timer(0.3, self.release).start()


@pytest.fixture
def saver(tmp_path: Path) -> BackgroundSaver:
    return BackgroundSaver(tmp_path, keep=3)


def test_save_returns_while_the_checkpoint_is_still_written(saver: BackgroundSaver, tmp_path: Path) -> None:
    blocker = Blocker()
    saver.save(1, {"blocked": blocker}, {})
    saver.report()
    assert not list_checkpoints(tmp_path)
    blocker.release_soon()
    saver.wait()
    assert find_damage(tmp_path / "step-00000001") is None
    assert not saver.failed


def test_changes_after_the_call_of_save_are_not_saved(saver: BackgroundSaver, tmp_path: Path) -> None:
    parameter, count, val_losses, blocker = torch.ones(10), [torch.ones(1)], {1: 1.0}, Blocker()
    saver.save(1, {"blocked": blocker, "weight": parameter, "nested": {"count": count}}, val_losses)
    parameter.fill_(2.0)
    count[0].fill_(2.0)
    blocker.release()
    saver.wait()
    state = load_checkpoint(tmp_path / "step-00000001")
    assert torch.equal(state["weight"], torch.ones(10))
    assert torch.equal(state["nested"]["count"][0], torch.ones(1))


def test_tensors_that_share_memory_are_saved_once(saver: BackgroundSaver, tmp_path: Path) -> None:
    parameter = torch.arange(100_000.0)
    saver.save(1, {"model": {"in": parameter, "out": parameter}, "half": parameter[50_000:], "none": torch.ones(0)}, {})
    saver.wait()
    path = tmp_path / "step-00000001"
    state = load_checkpoint(path)
    assert torch.equal(state["model"]["in"], parameter)
    assert torch.equal(state["model"]["out"], parameter)
    assert torch.equal(state["half"], parameter[50_000:])
    assert sum(file.stat().st_size for file in path.iterdir()) < 1.6 * parameter.nbytes


def test_save_waits_until_the_previous_checkpoint_is_written(saver: BackgroundSaver, tmp_path: Path) -> None:
    blocker = Blocker()
    saver.save(1, {"blocked": blocker}, {})
    blocker.release_soon()
    saver.save(2, {}, {})
    assert find_damage(tmp_path / "step-00000001") is None
    saver.wait()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000002", "step-00000001"]


def test_the_newest_checkpoints_and_the_best_are_kept(tmp_path: Path) -> None:
    saver = BackgroundSaver(tmp_path, keep=2)
    for step in range(1, 6):
        saver.save(step, {}, {1: 2.0, 2: 1.0, 3: 3.0, 4: 4.0})
    saver.wait()
    assert [path.name for path in list_checkpoints(tmp_path)] == [f"step-0000000{step}" for step in (5, 4, 2)]


def test_a_failed_write_is_reported_once_and_the_next_save_is_tried(
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
    assert [path.name for path in list_checkpoints(folder)] == ["step-00000002"]


def test_a_bug_in_the_writer_is_raised_in_the_training_thread(saver: BackgroundSaver) -> None:
    saver.save(1, {"unwritable": lambda: None}, {})
    with pytest.raises(Exception, match="pickle"):
        saver.wait()
