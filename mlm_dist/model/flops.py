"""The arithmetic of a step, by formula."""

from mlm_dist.config import Config
from mlm_dist.model.activation import inner_widths


def step_flops(config: Config) -> float:
    """FLOPs of one step by formula: the multiplications and additions of all matrix products that the recipe needs.

    The backward pass takes twice as many as the forward pass. The output layer, and the part of the last block that
    only the output layer reads, are counted for the predicted tokens only, even for a peer that computes them at all
    positions.
    """
    model = config.model
    width, tokens = model.embedding_dim, config.train.batch_size * model.block_size
    predicted = tokens * config.masking.mean_rate
    keys_and_values = 2 * tokens * 2 * width**2
    everything_else = 2 * width * (2 * width + sum(inner_widths(model))) + 4 * model.block_size * width
    blocks = model.blocks * keys_and_values + ((model.blocks - 1) * tokens + predicted) * everything_else
    return 3 * (blocks + 2 * predicted * width * model.entries)
