from pathlib import Path

import pytest

from mlm_dist import load
from mlm_dist.inference.model import TrainedModel


@pytest.fixture(scope="session")
def model(run_dir: Path) -> TrainedModel:
    """The model of the tiny run."""
    return load(run_dir, "cpu")
