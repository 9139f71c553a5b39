"""The shape of an exported model, read from its config.json alone, without torch."""

from pathlib import Path
from typing import Any

import pydantic

from mlm_dist.config import ModelConfig
from mlm_dist.errors import UserError
from mlm_dist.files import read_json

CONFIG_JSON = "config.json"
WEIGHTS = "model.safetensors"

# The shape: keys of config.json -> fields of `ModelConfig`.
FIELDS = {
    "vocab_size": "vocab_size",
    "max_position_embeddings": "block_size",
    "hidden_size": "embedding_dim",
    "num_attention_heads": "heads",
    "num_hidden_layers": "blocks",
    "hidden_dropout_prob": "dropout",
    "tie_word_embeddings": "tie_embeddings",
    "hidden_act": "activation",
}

# The values of `hidden_act` that an export can have.
ACTIVATIONS = ("relu", "gelu")

# What an `Encoder` cannot vary: keys of config.json -> their values.
FIXED = {
    "layer_norm_eps": 1e-12,  # LAYER_NORM_EPS of mlm_dist.model.encoder
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}

# The same for a model with rotary positions.
FIXED_IN_ESM = FIXED | {
    "position_embedding_type": "rotary",
    "rope_theta": 10000.0,  # BASE of mlm_dist.model.rotary
    "emb_layer_norm_before": False,
    "token_dropout": False,
}

# Of the keys that an export, or some version of transformers, leaves out.
DEFAULTS = {
    "tie_word_embeddings": True,
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}

MODEL_TYPE = "megatron-bert"
ESM = "esm"  # the type of a model with rotary positions

# How models of other types differ from an `Encoder`.
DIFFERENCES = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "electra", "distilbert"), "post-LayerNorm"),
    "modernbert": "gated feed-forward layers and local attention",
    "deberta": "relative positions",
    "deberta-v2": "relative positions",
    "gpt2": "attention to earlier tokens only",
}


def read_exported_shape(folder: Path) -> ModelConfig:
    """Read the shape of an exported model.

    Raises:
        UserError: config.json is missing or damaged, or the model cannot be an `Encoder`.
    """
    file = folder / CONFIG_JSON
    try:
        content = read_json(file)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{file}: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: it is not a JSON object")
    check_kind(content, file)
    is_rotary = content["model_type"] == ESM
    fixed = FIXED_IN_ESM if is_rotary else FIXED
    content = DEFAULTS | content | ({"hidden_act": "gelu"} if is_rotary else {})
    for key in (*FIELDS, *fixed, "intermediate_size"):
        if content.get(key) is None:
            raise UserError(f"{file}: {key} is missing")
    if content["hidden_act"] not in ACTIVATIONS:
        raise UserError(f"{file}: hidden_act is {content['hidden_act']!r:.80}: an export has 'relu' or 'gelu'")
    shape = build_shape(content, file)
    for key, expected in (fixed | {"intermediate_size": 4 * shape.embedding_dim}).items():
        if content[key] != expected:
            raise UserError(f"{file}: {key} is {content[key]!r:.80}: a model of mlm_dist has {expected!r}")
    return shape


def check_kind(content: dict[str, Any], file: Path) -> None:
    """Raise `UserError` if a config.json describes a model of another type than exported models have."""
    kind = content.get("model_type")
    if kind not in (MODEL_TYPE, ESM):
        difference = f", which has {DIFFERENCES[kind]}" if isinstance(kind, str) and kind in DIFFERENCES else ""
        raise UserError(
            f"{file}: model_type is {kind!r:.80}{difference}: only models that `export` wrote can be read, also after "
            f"transformers has fine-tuned them ({MODEL_TYPE} and {ESM})"
        )


def build_shape(content: dict[str, Any], file: Path) -> ModelConfig:
    """The shape in a config.json.

    Raises:
        UserError: a value is out of bounds or of the wrong type.
    """
    try:
        shape = {field: content[key] for key, field in FIELDS.items()}
        return ModelConfig(**shape, positions="rope" if content["model_type"] == ESM else "learned")
    except pydantic.ValidationError as error:
        details = error.errors()[0]
        key = next((key for key, field in FIELDS.items() if details["loc"] == (field,)), None)
        reason = f"{key} is {content[key]!r:.80}: {details['msg']}" if key else str(details["ctx"]["error"])
        raise UserError(f"{file}: {reason}") from error
