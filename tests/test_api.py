"""The verbs as Python functions, and a wheel that works without its checkout."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import mlm_dist
from mlm_dist.data.preparation import SAMPLE_TEXT
from mlm_dist.errors import UserError
from tests.conftest import REPOSITORY, TINY, start


def tiny_config(corpus: Path, run_dir: Path, **others: object) -> mlm_dist.Config:
    return mlm_dist.read_config("novels", TINY | {"data.path": str(corpus), "run_dir": str(run_dir)} | others)


def test_prepare_train_and_load_can_be_called_from_python(tmp_path: Path) -> None:
    corpus = mlm_dist.prepare([SAMPLE_TEXT], tmp_path / "corpus", tokenizer="bpe", vocab_size=300)
    assert (corpus.documents, corpus.bytes) == (1, SAMPLE_TEXT.stat().st_size)
    assert corpus.manifest.vocab_size == 300
    run = mlm_dist.train(tiny_config(corpus.path, tmp_path / "run", **{"train.max_iters": 4, "train.log_interval": 2}))
    assert (run.path, run.stop_reason) == (tmp_path / "run", "")
    assert [event["step"] for event in run.metrics if "loss" in event] == [2, 4]
    assert run.load().step == 4


def test_a_run_stopped_by_its_time_limit_returns_the_reason_and_resumes(corpus_folder: Path, tmp_path: Path) -> None:
    config = tiny_config(corpus_folder, tmp_path / "run", **{"train.time_limit": 1e-9, "train.max_iters": 4})
    assert mlm_dist.train(config).stop_reason == "train.time_limit"
    config.train.time_limit = None
    assert mlm_dist.train(config).stop_reason == ""


def test_the_modules_of_the_verbs_can_be_called(corpus_folder: Path, tmp_path: Path) -> None:
    import mlm_dist.prepare
    import mlm_dist.train  # after this, `mlm_dist.train` is the module

    run = mlm_dist.train(tiny_config(corpus_folder, tmp_path / "run", **{"train.max_iters": 1}))
    assert run.load().step == 1
    with pytest.raises(UserError, match="nothing to prepare"):
        mlm_dist.prepare([], tmp_path / "corpus")


def test_a_config_of_the_package_is_read_by_name_and_overridden_by_key() -> None:
    config = mlm_dist.read_config("debug", {"optim.lr": 1, "masking.mask_prob_range": [0, 1]})
    assert (config.run_dir, config.optim.lr, config.masking.mask_prob_range) == ("runs/debug", 1.0, [0.0, 1.0])
    with pytest.raises(UserError, match=r"optim\.lrr: unknown key; did you mean optim\.lr\?"):
        mlm_dist.read_config("debug", {"optim.lrr": 1})
    with pytest.raises(UserError, match=r"debgu: there is no such file; .* are bert_base_8gpu, debug, novels"):
        mlm_dist.read_config("debgu")


def test_one_text_instead_of_a_list_is_an_error(corpus_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="paths is a single path: give a list of paths"):
        mlm_dist.prepare(str(SAMPLE_TEXT), tmp_path / "corpus")
    model = mlm_dist.train(tiny_config(corpus_folder, tmp_path / "run", **{"train.max_iters": 1})).load()
    for function in (model.score, model.embed):
        with pytest.raises(UserError, match="texts is a single text: give a list of texts"):
            function("She went out.")


def test_a_name_instead_of_a_config_is_an_error() -> None:
    with pytest.raises(UserError, match=r"train needs a Config: mlm_dist\.read_config makes one"):
        mlm_dist.train("debug")  # type: ignore[arg-type]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = mlm_dist.trian


@pytest.mark.slow
def test_a_wheel_works_without_its_checkout(tmp_path: Path) -> None:
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--quiet",
        "--wheel-dir",
        str(tmp_path),
        str(REPOSITORY),
    ]
    subprocess.run(build, check=True, capture_output=True, timeout=200)
    (wheel,) = tmp_path.glob("*.whl")
    code = "import mlm_dist; print(mlm_dist.__path__); print(mlm_dist.read_config('novels').train.max_iters)"
    installed = tmp_path / "installed"
    subprocess.run([sys.executable, "-m", "zipfile", "-e", str(wheel), str(installed)], check=True)
    result = start([sys.executable, "-c", code], cwd=tmp_path, PYTHONPATH=str(installed))
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [f"['{installed}{os.sep}mlm_dist']", "5000"]
    flags = ["--config", "debug", "--train.max_iters", "3", "--run_dir", str(tmp_path / "run")]
    result = start([sys.executable, "-m", "mlm_dist", "train", *flags], cwd=tmp_path, PYTHONPATH=str(installed))
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run/model.pth").exists()
