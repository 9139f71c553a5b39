"""An exported run, and runs with any model."""

import re
import sys
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
from tests.conftest import start


@pytest.fixture(scope="session")
def exported(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run, exported."""
    folder = tmp_path_factory.mktemp("exported") / "tiny"
    export_model(mlm_dist.load(run_dir, "cpu"), folder)
    return folder


def make_run(path: Path, model: ModelConfig, tokenizer: Tokenizer, encoder: Encoder | None = None) -> TrainedModel:
    """Load a run that contains the parameters of `encoder`, by default those of a freshly initialized one."""
    torch.manual_seed(0)
    run_dir = RunDir(path)
    run_dir.acquire()
    run_dir.begin(Config(model=model), tokenizer)
    torch.save((encoder or Encoder(model)).state_dict(), run_dir.model)
    return mlm_dist.load(path, "cpu")


def random_encoder(shape: ModelConfig) -> Encoder:
    """An encoder whose parameters all differ, so that a mix-up changes its output."""
    encoder = Encoder(shape).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    return encoder


def run_last_example(folder: Path) -> str:
    """Run the last example on the model card of an exported folder in its own process, and return what it prints."""
    card = (folder / "README.md").read_text(encoding="utf-8")
    *_, example = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    result = start([sys.executable, "-c", example], cwd=folder.parent)
    assert result.returncode == 0, result.stderr
    return result.stdout
