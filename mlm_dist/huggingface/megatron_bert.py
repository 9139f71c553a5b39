"""Converting our encoder to transformers' `MegatronBertForMaskedLM`, which computes the same logits.

Their model has the same blocks. In addition, it has biases in the attention, a segment embedding, and a transform
before the output layer: dense, ReLU, LayerNorm. The biases and the segment embedding become zeros. The transform
becomes our final LayerNorm: their own final LayerNorm only normalises, without scale and shift. The dense layer adds an
offset that makes every entry positive, so that ReLU passes it unchanged, and the LayerNorm of the transform removes the
offset again.
"""

import math
from typing import Any

import torch

from mlm_dist.config import ModelConfig
from mlm_dist.data.tokenizer import Tokenizer
from mlm_dist.model.encoder import INITIAL_STD, LAYER_NORM_EPS

# The embeddings of both segments are zeros. Fine-tuning on pairs of texts may learn to use them.
SEGMENTS = 2

# Names of the layers of a block: ours -> theirs.
BLOCK_LAYERS = {
    "attention_norm": "attention.ln",
    "attention.projection": "attention.output.dense",
    "feed_forward_norm": "ln",
    "feed_forward.expand": "intermediate.dense",
    "feed_forward.contract": "output.dense",
}


def describe_model(model: ModelConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of `config.json`."""
    return {
        "architectures": ["MegatronBertForMaskedLM"],
        "model_type": "megatron-bert",
        "vocab_size": model.entries,
        "hidden_size": model.embedding_dim,
        "num_hidden_layers": model.blocks,
        "num_attention_heads": model.heads,
        "intermediate_size": 4 * model.embedding_dim,
        "hidden_act": "relu",
        "hidden_dropout_prob": model.dropout,
        "attention_probs_dropout_prob": model.dropout,
        "max_position_embeddings": model.block_size,
        "type_vocab_size": SEGMENTS,
        "initializer_range": INITIAL_STD,
        "layer_norm_eps": LAYER_NORM_EPS,
        "bos_token_id": tokenizer.end_id,
        "eos_token_id": tokenizer.end_id,
        "pad_token_id": tokenizer.end_id,
        "tie_word_embeddings": model.tie_embeddings,
        "dtype": "float32",
    }


def convert_weights(weights: dict[str, torch.Tensor], model: ModelConfig) -> dict[str, torch.Tensor]:
    """Convert the parameters of an `Encoder` to the names of transformers. No two of them share memory.

    Args:
        weights: the encoder's `state_dict`.
        model: its shape.
    """
    width, head, transform = model.embedding_dim, "cls.predictions", "cls.predictions.transform"
    converted = {
        "bert.embeddings.word_embeddings.weight": weights["token_embedding.weight"],
        "bert.embeddings.position_embeddings.weight": weights["position_embedding.weight"],
        "bert.embeddings.token_type_embeddings.weight": torch.zeros(SEGMENTS, width),
        "bert.encoder.ln.weight": torch.ones(width),
        "bert.encoder.ln.bias": torch.zeros(width),
        f"{transform}.dense.weight": torch.eye(width),
        f"{transform}.dense.bias": torch.full((width,), lift(width)),
        f"{transform}.LayerNorm.weight": weights["final_norm.weight"],
        f"{transform}.LayerNorm.bias": weights["final_norm.bias"],
        f"{head}.bias": weights["output.bias"],
    }
    for number in range(model.blocks):
        converted |= convert_block(weights, f"blocks.{number}.", f"bert.encoder.layer.{number}.")
    if not model.tie_embeddings:  # else transformers ties it to the embedding and the bias
        converted[f"{head}.decoder.weight"] = weights["output.weight"]
        converted[f"{head}.decoder.bias"] = weights["output.bias"].clone()
    return converted


def convert_block(weights: dict[str, torch.Tensor], ours: str, theirs: str) -> dict[str, torch.Tensor]:
    """Convert the parameters of a block from names that begin with `ours` to names that begin with `theirs`."""
    converted = {
        f"{theirs}{their_layer}.{kind}": weights[f"{ours}{our_layer}.{kind}"]
        for our_layer, their_layer in BLOCK_LAYERS.items()
        for kind in ("weight", "bias")
    }
    parts = weights[f"{ours}attention.query_key_value.weight"].chunk(3)
    for name, part in zip(("query", "key", "value"), parts, strict=True):
        converted[f"{theirs}attention.self.{name}.weight"] = part.clone()
        converted[f"{theirs}attention.self.{name}.bias"] = torch.zeros(len(part))
    return converted


def lift(width: int) -> float:
    """The smallest integer that makes all entries of a normalised vector positive when it is added to them.

    The entries sum to 0 and their squares to `width`, so the absolute value of an entry is at most sqrt(width - 1). A
    larger offset would cost precision, since the entries are rounded more coarsely when it is added.
    """
    return math.isqrt(width - 1) + 1.0
