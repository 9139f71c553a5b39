"""The verb as a person runs it."""

import shutil
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

import mlm_dist
from tests.conftest import Result, start, verb


def check_mistake(result: Result, complaint: str) -> None:
    """Check that the verb ended with one line about a mistake of the person's."""
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("mlm_dist: error: ")
    assert complaint in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_it_says_what_it_wrote(run_dir: Path, tmp_path: Path) -> None:
    result = verb("export", "--run", run_dir, "--out", "below/out", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "below/out: 0.1 MB, for AutoModelForMaskedLM.from_pretrained('below/out')\n"
    assert [path.name for path in (tmp_path / "below").iterdir()] == ["out"]


def test_of_an_unfinished_run_the_newest_checkpoint_is_taken(run_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(run_dir, tmp_path / "run")
    (tmp_path / "run/DONE").unlink()
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000030")
    assert verb("export", "--run", tmp_path / "run", "--out", tmp_path / "out").returncode == 0
    expected = mlm_dist.load(tmp_path / "run", "cpu").encoder.final_norm.bias
    assert not expected.equal(mlm_dist.load(run_dir, "cpu").encoder.final_norm.bias)
    with safe_open(tmp_path / "out/model.safetensors", "pt") as weights:
        assert weights.get_tensor("cls.predictions.transform.LayerNorm.bias").equal(expected)
        assert weights.metadata() == {"format": "pt"}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("--out out", "--run"),
        ("--run {run}", "--out"),
        ("--run {run} --out taken", "taken already exists"),
        ("--run {run} --out file", "file already exists"),
        ("--run {run} --out file/out", "file/out: cannot be written: Not a directory"),
        ("--run nowhere --out out", "nowhere is no run directory: it has no config.yaml"),
        ("--run taken --out out", "taken is no run directory"),
        ("--run begun --out out", "begun holds neither model.pth nor a checkpoint yet"),
        ("--run damaged --out out", "model.pth cannot be read as weights"),
        ("--run {run} --out out --dtype bf16", "--dtype"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    arguments: str, complaint: str, run_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").touch()
    shutil.copytree(run_dir, tmp_path / "begun", ignore=shutil.ignore_patterns("checkpoints", "model.pth", "DONE"))
    shutil.copytree(run_dir, tmp_path / "damaged")
    (tmp_path / "damaged/model.pth").write_bytes(b"PK no weights")
    before = sorted(tmp_path.rglob("*"))
    check_mistake(verb("export", *arguments.format(run=run_dir).split(), cwd=tmp_path), complaint)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("blocks", [4, 50])
def test_a_full_disk_is_told_in_one_line_and_leaves_nothing(blocks: int, run_dir: Path, tmp_path: Path) -> None:
    limited = f'ulimit -f {blocks}; exec "$@"'  # of 512 or 1024 bytes: less than tokenizer.json, or than the weights
    command = [sys.executable, "-m", "mlm_dist.export", "--run", run_dir, "--out", tmp_path / "out"]
    result = start(["sh", "-c", limited, "sh", *map(str, command)])
    check_mistake(result, "out: cannot be written: File too large")
    assert not list(tmp_path.iterdir())


def test_its_help_comes_at_once_and_has_an_example() -> None:
    code = "import sys; from mlm_dist.export import main\ntry: main(['--help'])\nfinally: print('torch' in sys.modules)"
    result = start([sys.executable, "-c", code])
    assert "Example: python -m mlm_dist.export --run runs/novels --out" in result.stdout
    assert result.stdout.endswith("False\n")
