"""A run on a corpus in shards is the run on the same text in one file, and continues it."""

import shutil
from pathlib import Path

from tests.conftest import tiny_flags, verb
from tests.faults.conftest import assert_same_run


def test_a_run_on_shards_is_the_run_on_one_file(run_dir: Path, sharded_folder: Path, tmp_path: Path) -> None:
    result = verb("train", *tiny_flags(sharded_folder, tmp_path / "run"))
    assert result.returncode == 0, result.stderr
    assert_same_run(tmp_path / "run", run_dir)


def test_a_run_on_one_file_continues_on_shards(run_dir: Path, sharded_folder: Path, tmp_path: Path) -> None:
    begun = Path(shutil.copytree(run_dir, tmp_path / "run"))
    shutil.rmtree(begun / "checkpoints" / "step-00000030")
    for name in ("DONE", "model.pth"):
        (begun / name).unlink()
    result = verb("train", *tiny_flags(sharded_folder, begun))
    assert result.returncode == 0, result.stderr
    assert "step 20 to 30" in result.stdout
    assert_same_run(begun, run_dir)


def test_an_evaluation_on_shards_is_that_on_one_file(run_dir: Path, corpus_folder: Path, sharded_folder: Path) -> None:
    one, several = (verb("evaluate", "--run", run_dir, "--data", path) for path in (corpus_folder, sharded_folder))
    assert one.returncode == 0, one.stderr
    assert several.stdout == one.stdout, several.stderr
