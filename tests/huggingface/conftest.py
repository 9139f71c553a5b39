"""An exported run, and runs with any model."""

from pathlib import Path

import pytest
import torch

import mlm_dist
from mlm_dist.config import Config, ModelConfig
from mlm_dist.data.tokenizer import Tokenizer
from mlm_dist.huggingface.export import export_model
from mlm_dist.inference.model import TrainedModel
from mlm_dist.model.encoder import Encoder
from mlm_dist.run.run_dir import RunDir


@pytest.fixture(scope="session")
def exported(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run, exported."""
    folder = tmp_path_factory.mktemp("exported") / "tiny"
    export_model(mlm_dist.load(run_dir, "cpu"), folder)
    return folder


def make_run(path: Path, model: ModelConfig, tokenizer: Tokenizer, encoder: Encoder | None = None) -> TrainedModel:
    """Load a run that contains the parameters of `encoder`, by default those of a freshly initialised one."""
    torch.manual_seed(0)
    run_dir = RunDir(path)
    run_dir.acquire()
    run_dir.begin(Config(model=model), tokenizer)
    torch.save((encoder or Encoder(model)).state_dict(), run_dir.model)
    return mlm_dist.load(path, "cpu")
