"""Shifted rows are the same with any number of processes, and after a kill."""

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import start, verb
from tests.faults.conftest import assert_same_run, history, run_to_end, train_command, with_script

pytestmark = pytest.mark.slow

DYING = Path(__file__).with_name("dying.py")
# An epoch has 167 steps, so the run reads rows of two epochs.
ROWS: dict[str, Any] = {"data__shift_rows": True, "train__max_iters": 180, "checkpoint__interval": 60}


@pytest.fixture(scope="module")
def undisturbed(corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    result = verb("train", *train_command(corpus_folder, run_dir, **ROWS)[3:])
    assert result.returncode == 0, result.stderr
    return run_dir


def test_a_killed_run_continues_with_the_same_rows(corpus_folder: Path, undisturbed: Path, tmp_path: Path) -> None:
    command = train_command(corpus_folder, tmp_path / "run", **ROWS)
    result = start(with_script(command, DYING, "step taken", 175, 0))
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert verb("train", *command[3:]).returncode == 0
    assert_same_run(tmp_path / "run", undisturbed)


@pytest.mark.multiprocess
def test_two_processes_read_the_rows_of_one(corpus_folder: Path, undisturbed: Path, tmp_path: Path) -> None:
    run_to_end(train_command(corpus_folder, tmp_path / "run", processes=2, **ROWS))
    digests = [[event.get("digest") for event in history(run)] for run in (tmp_path / "run", undisturbed)]
    assert digests[0] == digests[1]
    assert sum(digest is not None for digest in digests[0]) == 180
