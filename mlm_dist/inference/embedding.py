"""Embedding texts as vectors."""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from mlm_dist.config import ModelConfig
from mlm_dist.inference.predictor import Predictor
from mlm_dist.inference.request import require
from mlm_dist.model.encoder import as_encoder
from mlm_dist.model.masked_model import MaskedModel

Pooling = Literal["mean", "cls", "weighted"]

# How much each token of a text counts: positions in the text, from 0 -> weights.
WEIGHTS: dict[Pooling, Callable[[torch.Tensor], torch.Tensor]] = {
    "mean": torch.ones_like,
    "cls": lambda positions: positions == 0,
    "weighted": lambda positions: positions + 1,
}


def embed(
    predictor: Predictor,
    texts: Sequence[str],
    layer: int | None = None,
    pool: Pooling = "mean",
    normalize: bool = False,
) -> npt.NDArray[np.float32]:
    """Average hidden states over the tokens of each text.

    A text longer than the model's block size is read block by block. Positions count from its start, so `cls` is the
    state of the first token of the first block, and the weights of `weighted` grow from block to block. A text without
    tokens has a vector of zeros.

    Args:
        predictor: the model.
        texts: of any length.
        layer: as in `states_after`, from 0 to the number of blocks; None: the last one.
        pool: `mean` weighs all tokens alike. `cls` takes the first one alone: the model has no token [CLS]. `weighted`
            gives the token at position i the weight i, from 1 (SGPT: Muennighoff 2022, arXiv:2202.08904).
        normalize: whether vectors are scaled to a length of 1.

    Returns:
        (texts, C), one row per text.

    Raises:
        UserError: `layer` or `pool` is out of bounds, or a text contains a lone surrogate.
    """
    check_layer(predictor.encoder.config, layer)
    require(pool in WEIGHTS, "pool", pool, " or ".join(get_args(Pooling)))
    blocks = predictor.encoder.config.blocks
    sums = torch.zeros(len(texts), predictor.encoder.config.embedding_dim, dtype=torch.float64)
    totals = torch.zeros(len(texts), dtype=torch.float64)
    for keys, tokens in predictor.in_batches(cut(predictor, texts)):
        rows, starts = torch.tensor(keys).unbind(1)
        weights = WEIGHTS[pool](starts[:, None] + torch.arange(tokens.shape[1])).double()  # (B, T)
        states = states_after(predictor.encoder, tokens, blocks if layer is None else layer).double()
        sums.index_add_(0, rows, (states * weights.to(states.device)[:, :, None]).sum(1).cpu())
        totals.index_add_(0, rows, weights.sum(1))
    vectors = (sums / totals.clamp(min=1)[:, None]).float()
    pooled: npt.NDArray[np.float32] = (F.normalize(vectors) if normalize else vectors).numpy()
    return pooled


def check_layer(config: ModelConfig, layer: int | None) -> None:
    """Raise a `UserError` unless a model has this layer, as in `embed`."""
    require(layer is None or 0 <= layer <= config.blocks, "layer", layer, f"from 0, the embeddings, to {config.blocks}")


def cut(predictor: Predictor, texts: Sequence[str]) -> Iterator[tuple[tuple[int, int], list[int]]]:
    """Cut the token ids of texts into blocks. Yields each with the index of its text and its first position there."""
    for i, text in enumerate(texts):
        ids = predictor.tokenizer.encode(text).tolist()
        for start in range(0, len(ids), predictor.block_size):
            yield (i, start), ids[start : start + predictor.block_size]


@torch.no_grad()
def states_after(model: MaskedModel, tokens: torch.Tensor, layer: int) -> torch.Tensor:
    """Compute `hidden_states[layer]` of the exported model in transformers: (B, T) -> (B, T, C).

    Layer 0 is the sum of the embeddings, layer n the output of block n, and only that of the last block is normalized.

    Raises:
        UserError: it is an earlier layer, and the model is not an `Encoder`.
    """
    if layer == model.config.blocks:
        return model.last_hidden_states(tokens)
    inputs: list[torch.Tensor] = []
    next_block = as_encoder(model, "an earlier layer").blocks[layer]
    hook = next_block.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    try:
        model.encode(tokens)
    finally:
        hook.remove()
    return inputs[0]
