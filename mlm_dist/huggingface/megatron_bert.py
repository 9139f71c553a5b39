"""Converting an `Encoder` to transformers' `MegatronBertForMaskedLM`, which computes the same logits, and back.

The blocks are the same. In addition, `MegatronBertForMaskedLM` has biases in the attention, a segment embedding, and a
transform before the output layer: dense, activation, LayerNorm. The biases and the segment embedding are zeros. The
LayerNorm of the transform gets the scale and shift of the encoder's final LayerNorm, and the final LayerNorm of
`MegatronBertForMaskedLM` only normalizes. The dense layer adds an offset that makes every entry so large that the
activation does not change it, and the LayerNorm of the transform removes the offset again.
"""

import math
from typing import Any

import torch

from mlm_dist.config import ModelConfig
from mlm_dist.data.tokenizer import Tokenizer
from mlm_dist.model.encoder import LAYER_NORM_EPS
from mlm_dist.model.initial import INITIAL_STD

# The embeddings of both segments are zeros. Fine-tuning on pairs of texts can learn them.
SEGMENTS = 2

# Activations that `MegatronBertForMaskedLM` has -> from which number on they are the identity, in float32.
LEAST_UNCHANGED = {"relu": 0.0, "gelu": 6.0}

# Names in transformers.
SEGMENT_EMBEDDING = "bert.embeddings.token_type_embeddings.weight"
POSITION_EMBEDDING = "bert.embeddings.position_embeddings.weight"
FINAL_NORM = "bert.encoder.ln"
HEAD = "cls.predictions"
TRANSFORM = f"{HEAD}.transform"
QUERY_KEY_VALUE = ("query", "key", "value")

# Names of the parameters outside the blocks: in `Encoder` -> in transformers.
OUTSIDE_THE_BLOCKS = {
    "token_embedding.weight": "bert.embeddings.word_embeddings.weight",
    "position_embedding.weight": POSITION_EMBEDDING,
    "final_norm.weight": f"{TRANSFORM}.LayerNorm.weight",
    "final_norm.bias": f"{TRANSFORM}.LayerNorm.bias",
    "output.bias": f"{HEAD}.bias",
}

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
        "hidden_act": model.activation,
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
    width = model.embedding_dim
    converted = {target: parameters[source] for source, target in outside_the_blocks(model).items()} | {
        f"{FINAL_NORM}.weight": torch.ones(width),
        f"{FINAL_NORM}.bias": torch.zeros(width),
        f"{TRANSFORM}.dense.weight": torch.eye(width),
        f"{TRANSFORM}.dense.bias": torch.full((width,), identity_offset(model)),
    }
    if model.positions == "learned":
        converted[SEGMENT_EMBEDDING] = torch.zeros(SEGMENTS, width)
    for i in range(model.blocks):
        converted |= convert_block(parameters, f"blocks.{i}.", layer_name(i))
    if not model.tie_embeddings:  # else transformers ties them to the embedding and the bias
        converted[f"{HEAD}.decoder.weight"] = parameters["output.weight"]
        converted[f"{HEAD}.decoder.bias"] = parameters["output.bias"].clone()
    return converted


def restore_parameters(converted: dict[str, torch.Tensor], model: ModelConfig) -> dict[str, torch.Tensor]:
    """Invert `convert_parameters`, bit for bit. Parameters that an `Encoder` lacks are ignored: see `folding`.

    Args:
        converted: the parameters by the names of transformers.
        model: their shape.
    """
    parameters = {source: converted[target] for source, target in outside_the_blocks(model).items()}
    for i in range(model.blocks):
        parameters |= restore_block(converted, layer_name(i), f"blocks.{i}.")
    if model.tie_embeddings:
        return parameters | {"output.weight": parameters["token_embedding.weight"]}
    # transformers computes with this bias. The other one, which an export has too, does not change in fine-tuning.
    return parameters | {f"output.{kind}": converted[f"{HEAD}.decoder.{kind}"] for kind in ("weight", "bias")}


def outside_the_blocks(model: ModelConfig) -> dict[str, str]:
    """`OUTSIDE_THE_BLOCKS` of a model: rotary positions have no embedding."""
    has_embedding = model.positions == "learned"
    return {ours: name for ours, name in OUTSIDE_THE_BLOCKS.items() if has_embedding or name != POSITION_EMBEDDING}


def convert_block(parameters: dict[str, torch.Tensor], source: str, target: str) -> dict[str, torch.Tensor]:
    """Convert the parameters of a block from names that begin with `source` to names that begin with `target`."""
    converted = {
        f"{target}{target_layer}.{kind}": parameters[f"{source}{source_layer}.{kind}"]
        for source_layer, target_layer in BLOCK_LAYERS.items()
        for kind in ("weight", "bias")
    }
    parts = parameters[f"{source}attention.query_key_value.weight"].chunk(3)
    for name, part in zip(QUERY_KEY_VALUE, parts, strict=True):
        converted[f"{target}attention.self.{name}.weight"] = part.clone()
        converted[f"{target}attention.self.{name}.bias"] = torch.zeros(len(part))
    return converted


def restore_block(converted: dict[str, torch.Tensor], source: str, target: str) -> dict[str, torch.Tensor]:
    """Invert `convert_block`."""
    parts = [converted[f"{source}attention.self.{name}.weight"] for name in QUERY_KEY_VALUE]
    return {f"{target}attention.query_key_value.weight": torch.cat(parts)} | {
        f"{target}{target_layer}.{kind}": converted[f"{source}{source_layer}.{kind}"]
        for target_layer, source_layer in BLOCK_LAYERS.items()
        for kind in ("weight", "bias")
    }


def layer_name(block: int) -> str:
    """What the names of the parameters of a block begin with in transformers."""
    return f"bert.encoder.layer.{block}."


def identity_offset(model: ModelConfig) -> float:
    """The smallest integer that, added to the entries of a normalized vector, makes the activation the identity.

    The entries sum to 0 and their squares to the width, so the absolute value of an entry is at most sqrt(width - 1). A
    larger offset would cost precision, since the entries are rounded more coarsely when it is added.
    """
    return math.isqrt(model.embedding_dim - 1) + 1.0 + LEAST_UNCHANGED[model.activation]
