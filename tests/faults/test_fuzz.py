"""Thousands of damaged files: no verb hangs, fills the memory, writes elsewhere, runs code or prints a traceback."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PARTS = 2


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("cases_per_file", "fewest"), [(20, 250), pytest.param(190, 2000, marks=pytest.mark.long)], ids=["short", "long"]
)
def test_every_verb_reports_every_damaged_file_in_a_line(
    cases_per_file: int, fewest: int, run_dir: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    parts = []
    for part in range(PARTS):
        folder = tmp_path / str(part)
        folder.mkdir()
        paths = {
            "HOME": folder / "home",
            "XDG_CACHE_HOME": folder / "home/cache",
            "MPLCONFIGDIR": folder / "home/plots",
        }
        environment = os.environ | {key: str(path) for key, path in paths.items()} | {"OMP_NUM_THREADS": "1"}
        given = [cases_per_file, part, PARTS, run_dir, corpus_folder, folder]
        command = [sys.executable, "-m", "tests.faults.fuzzing", *map(str, given)]
        parts.append(subprocess.Popen(command, cwd=REPOSITORY, env=environment, text=True, stdout=subprocess.PIPE))
    results = [json.loads(process.communicate()[0]) for process in parts]
    assert [line for result in results for line in result["failures"]] == []
    counts = sum((Counter(result["counts"]) for result in results), Counter[str]())
    assert sum(counts.values()) >= fewest
    assert min(counts.values()) >= 15
