import shutil
from pathlib import Path

import pytest
import torch

import mlm_dist
from mlm_dist.errors import UserError
from mlm_dist.inference.model import TrainedModel


@pytest.fixture(scope="module")
def model(run_dir: Path) -> TrainedModel:
    return mlm_dist.load(run_dir, "cpu")


def test_an_unfinished_run_is_read_from_its_newest_checkpoint(
    run_dir: Path, tmp_path: Path, model: TrainedModel
) -> None:
    unfinished = tmp_path / "run"
    shutil.copytree(run_dir, unfinished)
    (unfinished / "DONE").unlink()
    (unfinished / "model.pth").write_bytes(b"of an earlier, shorter run")
    assert mlm_dist.load(unfinished, "cpu").fill("The [MASK]") == model.fill("The [MASK]")


def test_model_pth_alone_is_enough(run_dir: Path, tmp_path: Path, model: TrainedModel) -> None:
    bare = tmp_path / "run"
    shutil.copytree(run_dir, bare)
    (bare / "DONE").unlink()
    shutil.rmtree(bare / "checkpoints")
    assert mlm_dist.load(bare, "cpu").fill("The [MASK]") == model.fill("The [MASK]")


def test_a_finished_run_is_read_from_model_pth(run_dir: Path, tmp_path: Path, model: TrainedModel) -> None:
    done = tmp_path / "run"
    shutil.copytree(run_dir, done)
    shutil.rmtree(done / "checkpoints/step-00000030")
    assert mlm_dist.load(done, "cpu").fill("The [MASK]") == model.fill("The [MASK]")


def test_dropout_is_off(run_dir: Path, tmp_path: Path, model: TrainedModel) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy)
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace("dropout: 0.0", "dropout: 0.5"))
    loaded = mlm_dist.load(copy, "cpu")
    assert loaded.encoder.config.dropout == 0.5
    assert loaded.fill("The [MASK]") == model.fill("The [MASK]")


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_the_tokenizer_of_a_run_is_to_be_restored(run_dir: Path, tmp_path: Path, damage: str) -> None:
    copy = shutil.copytree(run_dir, tmp_path / "run")
    ranks = copy / "tokenizer" / "ranks.tiktoken"
    if damage == "missing":
        ranks.unlink()
    else:
        ranks.write_bytes(b"")
    with pytest.raises(UserError, match=r"tokenizer.*: restore a copy$"):
        mlm_dist.load(copy, "cpu")


def test_a_run_whose_config_has_no_vocab_size_is_refused(run_dir: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run_dir, tmp_path / "run")
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace("vocab_size: 300", "vocab_size: null"))
    message = r"config\.yaml: model\.vocab_size is null: set it to the value that the run was trained with"
    with pytest.raises(UserError, match=message):
        mlm_dist.load(copy, "cpu")


def test_a_damaged_model_pth_is_reported(run_dir: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "run"
    shutil.copytree(run_dir, damaged)
    (damaged / "model.pth").write_bytes(b"PK damaged")
    with pytest.raises(UserError, match=r"model.pth cannot be read as model parameters"):
        mlm_dist.load(damaged, "cpu")


def test_a_model_pth_of_another_program_is_reported(run_dir: Path, tmp_path: Path) -> None:
    other = tmp_path / "run"
    shutil.copytree(run_dir, other)
    torch.save([1], other / "model.pth")
    message = (
        r"model.pth cannot be read as model parameters: it is damaged, or another program wrote it; restore a copy"
    )
    with pytest.raises(UserError, match=message):
        mlm_dist.load(other, "cpu")


def test_parameters_that_are_not_finite_are_reported(run_dir: Path, tmp_path: Path) -> None:
    diverged = tmp_path / "run"
    shutil.copytree(run_dir, diverged)
    parameters = torch.load(diverged / "model.pth", weights_only=True)
    parameters["output.bias"][3] = torch.nan
    torch.save(parameters, diverged / "model.pth")
    with pytest.raises(UserError, match="contain NaN or infinity"):
        mlm_dist.load(diverged, "cpu")
