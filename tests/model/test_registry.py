import pytest
import torch

from mlm_dist.config import ModelConfig
from mlm_dist.model.encoder import Encoder
from mlm_dist.model.registry import MODELS, check_parameters


class SharedBlocks(Encoder):
    """An encoder all of whose blocks are the same one."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.blocks = self.blocks[:1]

    @classmethod
    def count_parameters(cls, config: ModelConfig) -> int:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in cls(config).parameters())


def test_a_model_may_have_fewer_tensors_than_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "shared", SharedBlocks)
    config = ModelConfig(vocab_size=10, embedding_dim=8, heads=2, blocks=50, name="shared")
    parameters = SharedBlocks(config).state_dict()
    assert len(parameters) < 50
    check_parameters(parameters, config)


def test_a_config_with_too_many_blocks_to_build_is_refused_at_once() -> None:
    config = ModelConfig(vocab_size=10, embedding_dim=8, heads=2, blocks=1)
    parameters = Encoder(config).state_dict()
    with pytest.raises(ValueError, match=r"a model of this shape has \d+ parameters, which are more"):
        check_parameters(parameters, ModelConfig(vocab_size=10, embedding_dim=8, heads=2, blocks=10**12))
