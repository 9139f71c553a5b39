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


def test_weights_alone_are_enough(run_dir: Path, tmp_path: Path, model: TrainedModel) -> None:
    bare = tmp_path / "run"
    shutil.copytree(run_dir, bare)
    (bare / "DONE").unlink()
    shutil.rmtree(bare / "checkpoints")
    assert mlm_dist.load(bare, "cpu").fill("The [MASK]") == model.fill("The [MASK]")


def test_the_weights_of_a_run_that_is_done_are_its_last(run_dir: Path, tmp_path: Path, model: TrainedModel) -> None:
    done = tmp_path / "run"
    shutil.copytree(run_dir, done)
    shutil.rmtree(done / "checkpoints/step-00000030")
    assert mlm_dist.load(done, "cpu").fill("The [MASK]") == model.fill("The [MASK]")


def test_nothing_is_dropped(run_dir: Path, tmp_path: Path, model: TrainedModel) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy)
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace("dropout: 0.0", "dropout: 0.5"))
    dropping = mlm_dist.load(copy, "cpu")
    assert dropping.encoder.config.dropout == 0.5
    assert dropping.fill("The [MASK]") == model.fill("The [MASK]")


def test_a_run_whose_config_leaves_the_size_of_its_vocabulary_open_cannot_be_asked(
    run_dir: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(run_dir, tmp_path / "run")
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace("vocab_size: 300", "vocab_size: null"))
    with pytest.raises(
        UserError, match=r"config\.yaml: model\.vocab_size has to be the number that the run was trained"
    ):
        mlm_dist.load(copy, "cpu")


def test_damaged_weights_are_said(run_dir: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "run"
    shutil.copytree(run_dir, damaged)
    (damaged / "model.pth").write_bytes(b"PK no weights")
    with pytest.raises(UserError, match=r"model.pth cannot be read"):
        mlm_dist.load(damaged, "cpu")


def test_weights_of_another_kind_are_said(run_dir: Path, tmp_path: Path) -> None:
    other = tmp_path / "run"
    shutil.copytree(run_dir, other)
    torch.save([1], other / "model.pth")
    with pytest.raises(UserError, match=r"model.pth cannot be read as weights: it is damaged, or of another program"):
        mlm_dist.load(other, "cpu")


def test_weights_that_are_no_numbers_are_said(run_dir: Path, tmp_path: Path) -> None:
    spoilt = tmp_path / "run"
    shutil.copytree(run_dir, spoilt)
    weights = torch.load(spoilt / "model.pth", weights_only=True)
    weights["output.bias"][3] = torch.nan
    torch.save(weights, spoilt / "model.pth")
    with pytest.raises(UserError, match="are no finite numbers"):
        mlm_dist.load(spoilt, "cpu")
