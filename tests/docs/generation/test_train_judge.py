import math
import re
import sys
from pathlib import Path

from judge import Judge
from tests.conftest import Result, start


def train_judge(*arguments: object) -> Result:
    return start([sys.executable, "docs/generation/train_judge.py", *map(str, arguments)])


def test_a_judge_learns_and_is_saved(corpus_folder: Path, tmp_path: Path) -> None:
    result = train_judge("--corpus", corpus_folder, "--out", tmp_path / "judge", "--steps", 4)
    assert (result.returncode, result.stderr) == (0, "")
    vocabulary = Judge.load(tmp_path / "judge").tokenizer.get_vocab_size()
    assert f"vocabulary {vocabulary}, " in result.stdout
    nats = re.search(r"([\d.]+) per token of the judge", result.stdout)
    assert nats
    assert 1 < float(nats[1]) < math.log(vocabulary) - 0.3


def test_a_user_error_is_one_line(corpus_folder: Path, tmp_path: Path) -> None:
    taken = train_judge("--corpus", corpus_folder, "--out", tmp_path)
    assert (taken.returncode, taken.stderr.count("\n")) == (2, 1)
    assert "already exists" in taken.stderr
    none = train_judge("--corpus", corpus_folder, "--out", tmp_path / "judge", "--steps", 0)
    assert (none.returncode, none.stderr) == (2, "mlm_dist: error: --steps is 0: it must be at least 1\n")
