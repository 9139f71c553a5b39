"""Initial parameters of the encoder."""

import torch
from torch import nn

from mlm_dist.config import ModelConfig

INITIAL_STD = 0.02

# The layers of a block whose output is added to the residual stream.
PROJECTIONS = ("attention.projection", "feed_forward.contract")


def initialize(model: nn.Module, config: ModelConfig) -> None:
    """Sample matrices from N(0, 0.02) and set biases to zero, like GPT-2 (Radford et al. 2019).

    `embedding_std`, `output_std`, `query_key_std` and `zero_init_projections` change this for some of them.
    """
    output_std = config.embedding_std if config.tie_embeddings else config.output_std
    stds = {"token_embedding": config.embedding_std, "position_embedding": config.embedding_std, "output": output_std}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=stds.get(name, INITIAL_STD))
        if name.endswith("query_key_value"):
            with torch.no_grad():
                module.weight[: 2 * config.embedding_dim] *= config.query_key_std / INITIAL_STD
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if config.zero_init_projections and name.endswith(PROJECTIONS):
            nn.init.zeros_(module.weight)
