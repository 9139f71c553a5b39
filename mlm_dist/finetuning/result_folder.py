"""The folder that `finetune` writes: what is finished is kept, so that the same command continues.

settings.json   what the results depend on, and the largest number of seeds; another command is refused
outcomes/       what each model predicted with each seed
model/          the trained model of the seed with the best dev metric
finetune.json   the table, once all is finished
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from mlm_dist.errors import UserError
from mlm_dist.fault_points import reached
from mlm_dist.files import LARGEST_JSON, new_folder, read_bytes, read_json, replacing
from mlm_dist.finetuning.outcome import Outcome
from mlm_dist.inference.task_report import TABLE
from mlm_dist.run.lock import lock
from mlm_dist.run.record import differences

SEEDS = "seeds"  # in settings.json


class ResultFolder:
    """The folder of a comparison.

    Attributes:
        path: the folder itself.
        model: the folder of the model.
        table: finetune.json.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model = path / "model"
        self.table = path / TABLE
        self._settings = path / "settings.json"
        self._outcomes = path / "outcomes"
        self._lock: IO[str] | None = None

    def check(self, settings: Mapping[str, Any], seeds: int) -> None:
        """Raise `UserError` if it has other content, or results of other settings or more seeds. Writes nothing."""
        before = self._read_settings() or {}
        if changes := differences(before, settings):
            raise UserError(f"{self.path} has results of {changes}: use the same values, or another --out")
        if before.get(SEEDS, 0) > seeds:  # the model may be of a seed that is left out
            raise UserError(f"{self.path} has results of {before[SEEDS]} seeds: raise --seeds, or give another --out")

    def open(self, settings: Mapping[str, Any], seeds: int) -> None:
        """Create the folder, or continue it, with its lock.

        Raises:
            UserError: it cannot be written or is in use.
        """
        try:
            self._outcomes.mkdir(parents=True, exist_ok=True)
            self._lock = lock(self.path / ".lock")
            write_json(self._settings, {**settings, SEEDS: seeds})
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror}") from error

    def _read_settings(self) -> dict[str, Any] | None:
        """The settings of a folder that is to be continued; None if there is no folder, or one without results."""
        if not self.path.exists():
            return None
        try:
            settings: dict[str, Any] = read_json(self._settings)
        except FileNotFoundError as error:
            of_killed = {".lock", f".{self._settings.name}.partial", self._outcomes.name}
            is_empty = self.path.is_dir() and {file.name for file in self.path.iterdir()} <= of_killed
            if is_empty and not any(self._outcomes.glob("*")):
                return None
            raise UserError(f"{self.path} already exists, and is not of finetune: choose another --out") from error
        except OSError as error:
            raise UserError(f"{self.path}: {error.strerror}: choose another --out") from error
        except ValueError as error:
            raise UserError(f"{self._settings} is damaged ({error}): delete {self.path}, or choose another") from error
        return settings

    def close(self) -> None:
        """Release the lock."""
        if self._lock:
            self._lock.close()
        self._lock = None

    def read(self, name: str, seed: int) -> Outcome | None:
        """What a model learned with a seed in an earlier command; None if it did not finish."""
        file = self._file(name, seed)
        try:
            content = read_json(file, LARGEST_JSON)
            return Outcome(np.array(content["test"]), content["dev"], content["chosen"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file} is damaged: delete it, and it is computed again") from error

    def write(self, name: str, seed: int, outcome: Outcome, best: float) -> None:
        """Keep what a model has learned; and the model, if its dev metric is above `best`.

        The model is written first: a killed command learns it again, and writes the same one.

        Raises:
            UserError: the folder cannot be written.
        """
        try:
            if outcome.save and outcome.dev > best:
                following = self.path / f"{self.model.name}.next"
                for earlier in self.path.glob(f"*{following.name}*"):  # of killed commands
                    shutil.rmtree(earlier, ignore_errors=True)
                with new_folder(following) as folder:
                    outcome.save(folder)
                    reached("model of finetune in parts")
                shutil.rmtree(self.model, ignore_errors=True)
                following.rename(self.model)
                reached("model of finetune written")
            content = {"test": outcome.test.tolist(), "dev": outcome.dev, "chosen": dict(outcome.chosen)}
            write_json(self._file(name, seed), content)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror}") from error

    def write_table(self, content: Mapping[str, Any]) -> None:
        """Write finetune.json. Raises `UserError`."""
        try:
            write_json(self.table, content)
        except OSError as error:
            raise UserError(f"{self.table}: cannot be written: {error.strerror}") from error

    def _file(self, name: str, seed: int) -> Path:
        return self._outcomes / f"{name}-{seed}.json"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file of JSON atomically. Raises `OSError`."""
    with replacing(path) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())


def digest(path: Path) -> str:
    """The SHA-256 of a file. Raises `UserError` if it cannot be read."""
    try:
        return hashlib.sha256(read_bytes(path)).hexdigest()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
