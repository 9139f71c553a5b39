"""A `finetune` that is killed continues, and ends with the same files."""

import json
import signal
import sys
from pathlib import Path

import pytest

from tests.conftest import start, verb

pytestmark = pytest.mark.slow

# finetune.py, killed when it reaches a fault point for the CALL-th time
DYING = """
import sys
from mlm_dist.exit_codes import run_verb
from mlm_dist.finetune import main
from tests.faults.dying import die_at
die_at(sys.argv.pop(1), int(sys.argv.pop(1)))
run_verb(main)
"""


def files_of(out: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(out)): file.read_bytes()
        for file in out.rglob("*")
        if file.name != ".lock" and file.is_file()
    }


def test_a_killed_command_continues_with_the_same_results(run_dir: Path, tmp_path: Path) -> None:
    texts = [f"{'sea' if index % 3 else 'land'} {'wave' if index % 3 else 'farm'} {index}\n" for index in range(40)]
    (tmp_path / "train.txt").write_text("".join(texts))
    options = ["--method", "full", "--seeds", "2", "--epochs", "1", "--batch_size", "8", "--device", "cpu"]
    arguments = ["--run", str(run_dir), "--train", str(tmp_path / "train.txt"), *options]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    undisturbed = verb("finetune", *arguments, "--out", whole)
    assert undisturbed.returncode == 0, undisturbed.stderr
    for point in ("model of finetune in parts", "model of finetune written"):
        died = start([sys.executable, "-c", DYING, point, "1", *arguments, "--out", str(killed)])
        assert died.returncode == -signal.SIGKILL, died.stderr
        assert not (killed / "outcomes" / "trained-0.json").exists()
    result = verb("finetune", *arguments, "--out", killed)
    assert result.returncode == 0, result.stderr
    assert files_of(killed) == files_of(whole)
    assert json.loads((killed / "finetune.json").read_text())["results"].keys() == {
        "majority",
        "TF-IDF",
        "untrained",
        "trained",
    }
