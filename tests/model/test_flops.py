"""FLOPs by formula."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mlm_dist.config import Config, MaskingConfig, ModelConfig, TrainConfig
from mlm_dist.model.encoder import Encoder
from mlm_dist.model.flops import step_flops


@pytest.mark.parametrize(
    "model", [{}, {"blocks": 1}, {"block_size": 64}, {"embedding_dim": 64}, {"vocab_size": 99}, {"activation": "geglu"}]
)
def test_the_formula_counts_the_same_flops_as_torch(model: dict[str, Any]) -> None:
    shape = {"vocab_size": 3000, "block_size": 16, "embedding_dim": 32, "heads": 2, "blocks": 3} | model
    config = Config(model=ModelConfig(**shape), masking=MaskingConfig(mask_prob=0.25), train=TrainConfig(batch_size=12))
    length = config.model.block_size
    encoder, tokens = Encoder(config.model), torch.zeros(12, length, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        encoder(tokens, torch.zeros(12, length // 4, dtype=torch.long)).sum().backward()
    assert counter.get_total_flops() == pytest.approx(step_flops(config), rel=1e-6)
