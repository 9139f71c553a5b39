"""`python -m mlm_dist.export`, run from the command line."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

import mlm_dist
from mlm_dist.config import ModelConfig
from mlm_dist.data.corpus import Corpus
from tests.conftest import Result, start, verb
from tests.huggingface.conftest import make_run


def check_user_error(result: Result, message: str) -> None:
    """Check that the verb printed one line about a user error and exited with 2."""
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("mlm_dist: error: ")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_it_prints_the_folder_and_how_to_load_it(run_dir: Path, tmp_path: Path) -> None:
    result = verb("export", "--run", run_dir, "--out", "below/out", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "below/out: 0.1 MB, for AutoModelForMaskedLM.from_pretrained('below/out')\n"
    assert [path.name for path in (tmp_path / "below").iterdir()] == ["out"]


def test_the_newest_checkpoint_of_an_unfinished_run_is_exported(run_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(run_dir, tmp_path / "run")
    (tmp_path / "run/DONE").unlink()
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000030")
    assert verb("export", "--run", tmp_path / "run", "--out", tmp_path / "out").returncode == 0
    expected = mlm_dist.load(tmp_path / "run", "cpu").encoder.get_parameter("final_norm.bias")
    assert not expected.equal(mlm_dist.load(run_dir, "cpu").encoder.get_parameter("final_norm.bias"))
    with safe_open(tmp_path / "out/model.safetensors", "pt") as parameters:
        assert parameters.get_tensor("cls.predictions.transform.LayerNorm.bias").equal(expected)
        assert parameters.metadata() == {"format": "pt"}


@pytest.mark.slow
def test_additions_are_written_for_each_checkpoint(run_dir: Path, tmp_path: Path) -> None:
    run, out = Path(shutil.copytree(run_dir, tmp_path / "run")), tmp_path / "out"
    for step in (10, 20):
        shutil.rmtree(run / f"checkpoints/step-{step:08d}")
    result = verb("export", "--run", run, "--out", out, "--all", "--sentence_transformers", "--onnx")
    assert (result.returncode, result.stderr) == (0, "")
    names = {str(path.relative_to(out / "step-00000030")) for path in (out / "step-00000030").rglob("*")}
    assert names > {"model.onnx", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json"}
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    assert f"{size / 1e6:.1f} MB" in result.stdout


def test_all_checkpoints_and_milestones_are_exported_and_damaged_ones_named(run_dir: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(run_dir, tmp_path / "run"))
    (run / "milestones").mkdir()
    (run / "checkpoints/step-00000010").rename(run / "milestones/step-00000010")
    shutil.copytree(run / "checkpoints/step-00000030", run / "milestones/step-00000030")
    (run / "checkpoints/step-00000020/state.pt").write_bytes(b"")
    out = tmp_path / "out"
    result = verb("export", "--run", run, "--out", out, "--all")
    assert result.returncode == 0
    assert result.stderr.splitlines() == [
        f"mlm_dist: {run}/checkpoints/step-00000020 is skipped: state.pt does not match manifest.json"
    ]
    assert [line.partition(": ")[0] for line in result.stdout.splitlines()] == [
        f"{out}/step-00000010",
        f"{out}/step-00000030",
    ]
    for step in (10, 30):
        name = f"step-{step:08d}"
        assert verb("export", "--run", run, "--out", tmp_path / name, "--step", step).returncode == 0
        for file in (tmp_path / name).iterdir():
            exported = (out / name / file.name).read_bytes()
            assert exported.replace(f"out/{name}".encode(), name.encode()) == file.read_bytes()
    assert sorted(path.name for path in out.iterdir()) == ["step-00000010", "step-00000030"]


def test_if_one_checkpoint_cannot_be_exported_there_is_no_folder(run_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(run_dir, tmp_path / "run")
    (tmp_path / "run/metrics.jsonl").write_text('{"step": 20, "val_loss": 2.0}\n')  # for the card of step 20
    check_user_error(
        verb("export", "--run", tmp_path / "run", "--out", tmp_path / "out", "--all"), "metrics.jsonl is damaged"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--out out", "--run"),
        ("--run {run}", "--out"),
        ("--run {run} --out taken", "taken already exists"),
        ("--run {run} --out file", "file already exists"),
        ("--run {run} --out file/out", "file/out: cannot be written: Not a directory"),
        ("--run nowhere --out out", "nowhere is not a run directory: there is no such folder"),
        ("--run taken --out out", "taken is not a run directory"),
        ("--run begun --out out", "begun contains neither model.pth nor a checkpoint yet"),
        ("--run damaged --out out", "model.pth cannot be read as model parameters"),
        ("--run {run} --out out --dtype bf16", "--dtype"),
        ("--run {run} --out out --all --step 10", "--all and --step: give one of them"),
        ("--run {run} --out taken --all", "taken already exists"),
        ("--run nowhere --out out --all", "nowhere is not a run directory: there is no such folder"),
        ("--run begun --out out --all", "begun has no undamaged checkpoint or milestone"),
    ],
)
def test_a_user_error_is_one_line_and_leaves_no_files(
    arguments: str, message: str, run_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").touch()
    shutil.copytree(run_dir, tmp_path / "begun", ignore=shutil.ignore_patterns("checkpoints", "model.pth", "DONE"))
    shutil.copytree(run_dir, tmp_path / "damaged")
    (tmp_path / "damaged/model.pth").write_bytes(b"PK damaged")
    before = sorted(tmp_path.rglob("*"))
    check_user_error(verb("export", *arguments.format(run=run_dir).split(), cwd=tmp_path), message)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"activation": "relu2"}, "megatron-bert, which has positions like it, has no model.activation relu2"),
        ({"positions": "rope"}, "esm, which has positions like it, has no model.activation relu"),
        (
            {"qk_norm": True, "logit_softcap": 30.0},
            "megatron-bert, which has positions like it, has no model.qk_norm true and no model.logit_softcap 30.0",
        ),
    ],
    ids=str,
)
def test_a_model_that_transformers_lacks_is_refused_by_its_options(
    changes: dict[str, Any], named: str, corpus: Corpus, tmp_path: Path
) -> None:
    shape = ModelConfig(vocab_size=300, block_size=16, embedding_dim=16, heads=2, **changes)
    make_run(tmp_path / "run", shape, corpus.tokenizer)
    result = verb("export", "--run", tmp_path / "run", "--out", tmp_path / "out")
    check_user_error(result, f"cannot be exported: transformers' {named}")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("blocks", [4, 50])
def test_a_full_disk_is_reported_in_one_line_and_leaves_no_files(blocks: int, run_dir: Path, tmp_path: Path) -> None:
    # Blocks of 512 or 1024 bytes: too few for tokenizer.json, or for the parameters.
    limited = f'ulimit -f {blocks}; exec "$@"'
    command = [sys.executable, "-m", "mlm_dist.export", "--run", run_dir, "--out", tmp_path / "out"]
    result = start(["sh", "-c", limited, "sh", *map(str, command)])
    check_user_error(result, "out: cannot be written: File too large")
    assert not list(tmp_path.iterdir())


def test_its_help_has_an_example_and_does_not_import_torch() -> None:
    code = "import sys; from mlm_dist.export import main\ntry: main(['--help'])\nfinally: print('torch' in sys.modules)"
    result = start([sys.executable, "-c", code])
    assert "Example: python -m mlm_dist.export --run runs/novels --out" in result.stdout
    assert result.stdout.endswith("False\n")
