"""Converting an `Encoder` to transformers' `MegatronBertForMaskedLM`, which computes the same logits.

The blocks are the same. In addition, `MegatronBertForMaskedLM` has biases in the attention, a segment embedding, and a
transform before the output layer: dense, ReLU, LayerNorm. The biases and the segment embedding are zeros. The LayerNorm
of the transform gets the scale and shift of the encoder's final LayerNorm, and the final LayerNorm of
`MegatronBertForMaskedLM` only normalises. The dense layer adds an offset that makes every entry positive, so that ReLU
does not change it, and the LayerNorm of the transform removes the offset again.
"""

import math
from typing import Any

import torch

from mlm_dist.config import ModelConfig
from mlm_dist.data.tokenizer import Tokenizer
from mlm_dist.model.encoder import INITIAL_STD, LAYER_NORM_EPS

# The embeddings of both segments are zeros. Fine-tuning on pairs of texts can learn them.
SEGMENTS = 2

# Names of the layers of a block: in `Encoder` -> in transformers.
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


def convert_parameters(parameters: dict[str, torch.Tensor], model: ModelConfig) -> dict[str, torch.Tensor]:
    """Convert the parameters of an `Encoder` to the names of transformers. No two of them share memory.

    Args:
        parameters: the encoder's `state_dict`.
        model: its shape.
    """
    width, head, transform = model.embedding_dim, "cls.predictions", "cls.predictions.transform"
    converted = {
        "bert.embeddings.word_embeddings.weight": parameters["token_embedding.weight"],
        "bert.embeddings.position_embeddings.weight": parameters["position_embedding.weight"],
        "bert.embeddings.token_type_embeddings.weight": torch.zeros(SEGMENTS, width),
        "bert.encoder.ln.weight": torch.ones(width),
        "bert.encoder.ln.bias": torch.zeros(width),
        f"{transform}.dense.weight": torch.eye(width),
        f"{transform}.dense.bias": torch.full((width,), relu_offset(width)),
        f"{transform}.LayerNorm.weight": parameters["final_norm.weight"],
        f"{transform}.LayerNorm.bias": parameters["final_norm.bias"],
        f"{head}.bias": parameters["output.bias"],
    }
    for i in range(model.blocks):
        converted |= convert_block(parameters, f"blocks.{i}.", f"bert.encoder.layer.{i}.")
    if not model.tie_embeddings:  # else transformers ties them to the embedding and the bias
        converted[f"{head}.decoder.weight"] = parameters["output.weight"]
        converted[f"{head}.decoder.bias"] = parameters["output.bias"].clone()
    return converted


def convert_block(parameters: dict[str, torch.Tensor], source: str, target: str) -> dict[str, torch.Tensor]:
    """Convert the parameters of a block from names that begin with `source` to names that begin with `target`."""
    converted = {
        f"{target}{target_layer}.{kind}": parameters[f"{source}{source_layer}.{kind}"]
        for source_layer, target_layer in BLOCK_LAYERS.items()
        for kind in ("weight", "bias")
    }
    parts = parameters[f"{source}attention.query_key_value.weight"].chunk(3)
    for name, part in zip(("query", "key", "value"), parts, strict=True):
        converted[f"{target}attention.self.{name}.weight"] = part.clone()
        converted[f"{target}attention.self.{name}.bias"] = torch.zeros(len(part))
    return converted


def relu_offset(width: int) -> float:
    """The smallest integer that makes all entries of a normalised vector positive when it is added to them.

    The entries sum to 0 and their squares to `width`, so the absolute value of an entry is at most sqrt(width - 1). A
    larger offset would cost precision, since the entries are rounded more coarsely when it is added.
    """
    return math.isqrt(width - 1) + 1.0
