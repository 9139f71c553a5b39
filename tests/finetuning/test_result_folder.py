from pathlib import Path

import numpy as np
import pytest

from mlm_dist.errors import UserError
from mlm_dist.finetuning.outcome import Outcome
from mlm_dist.finetuning.result_folder import ResultFolder
from mlm_dist.inference.task_report import TRAINED

SETTINGS = {"layer": 2}


def outcome(dev: float, content: str) -> Outcome:
    """Of a model with one file; without content, it cannot be written."""

    def save(folder: Path) -> None:
        (folder / "weights").write_text(content)
        if not content:
            raise OSError(28, "No space left on device")

    return Outcome(np.array([1]), dev, {}, save)


def test_a_folder_of_a_command_killed_at_its_start_continues(tmp_path: Path) -> None:
    (tmp_path / "outcomes").mkdir()
    (tmp_path / ".settings.json.partial").write_text("{")
    (tmp_path / ".lock").write_text("")
    folder = ResultFolder(tmp_path)
    folder.check(SETTINGS, 3)
    folder.open(SETTINGS, 3)
    assert sorted(file.name for file in tmp_path.iterdir()) == [".lock", "outcomes", "settings.json"]


def test_outcomes_without_settings_are_not_continued(tmp_path: Path) -> None:
    folder = ResultFolder(tmp_path)
    folder.open(SETTINGS, 3)
    folder.write(TRAINED, 0, outcome(0.5, "first"), 0)
    (tmp_path / "settings.json").unlink()
    (tmp_path / "model" / "weights").unlink()
    (tmp_path / "model").rmdir()
    with pytest.raises(UserError, match="already exists, and is not of finetune"):
        folder.check(SETTINGS, 3)


def test_fewer_seeds_than_were_asked_for_are_refused(tmp_path: Path) -> None:
    folder = ResultFolder(tmp_path)
    folder.open(SETTINGS, 3)
    folder.check(SETTINGS, 4)
    with pytest.raises(UserError, match="has results of 3 seeds: raise --seeds, or give another --out"):
        folder.check(SETTINGS, 2)


def test_the_model_is_kept_until_a_better_one_is_complete(tmp_path: Path) -> None:
    folder = ResultFolder(tmp_path)
    folder.open(SETTINGS, 3)
    folder.write(TRAINED, 0, outcome(0.5, "first"), 0)
    with pytest.raises(UserError, match="No space left"):
        folder.write(TRAINED, 1, outcome(0.6, ""), 0.5)
    assert (folder.model / "weights").read_text() == "first"
    folder.write(TRAINED, 1, outcome(0.6, "second"), 0.5)
    assert (folder.model / "weights").read_text() == "second"
    assert sorted(file.name for file in tmp_path.iterdir()) == [".lock", "model", "outcomes", "settings.json"]
