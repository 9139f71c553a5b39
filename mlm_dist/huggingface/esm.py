"""Rotary positions in transformers: `EsmForMaskedLM`, a model of proteins that computes the same logits.

Its layers are those of `MegatronBertForMaskedLM` by other names, with GELU, and with rotary positions instead of
embeddings of positions and segments. In addition, it has a head for the contacts of a protein, which is zeros here.
"""

import re
from typing import Any

import torch

from mlm_dist.config import ModelConfig
from mlm_dist.data.tokenizer import Tokenizer
from mlm_dist.exported_shape import ESM
from mlm_dist.huggingface import megatron_bert
from mlm_dist.model.rotary import BASE

# Parts of names: in `MegatronBertForMaskedLM` -> in `EsmForMaskedLM`.
NAMES = {
    "encoder.ln.": "encoder.emb_layer_norm_after.",
    "cls.predictions.transform.dense.": "lm_head.dense.",
    "cls.predictions.transform.LayerNorm.": "lm_head.layer_norm.",
    "cls.predictions.": "lm_head.",
    "bert.": "esm.",
}
CONTACTS = "esm.contact_head.regression"


def describe_model(model: ModelConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of `config.json`."""
    content = megatron_bert.describe_model(model, tokenizer)
    del content["hidden_act"], content["type_vocab_size"]
    return content | {
        "architectures": ["EsmForMaskedLM"],
        "model_type": ESM,
        "position_embedding_type": "rotary",
        "rope_theta": BASE,
        "emb_layer_norm_before": False,
        "token_dropout": False,
        "mask_token_id": tokenizer.mask_id,
    }


def convert_parameters(parameters: dict[str, torch.Tensor], model: ModelConfig) -> dict[str, torch.Tensor]:
    """Convert the parameters of an `Encoder` to the names of transformers. No two of them share memory."""
    converted = megatron_bert.convert_parameters(parameters, model)
    converted.pop(f"{megatron_bert.HEAD}.decoder.bias", None)  # the head has one bias
    exponents = torch.arange(0, model.head_size, 2) / model.head_size
    return {rename(name): tensor for name, tensor in converted.items()} | {
        f"{CONTACTS}.weight": torch.zeros(1, model.blocks * model.heads),
        f"{CONTACTS}.bias": torch.zeros(1),
        "esm.rotary_embeddings.inv_freq": 1.0 / BASE**exponents,
    }


def rename(name: str) -> str:
    """The name in `EsmForMaskedLM` of a parameter of `MegatronBertForMaskedLM`."""
    name = re.sub(r"(\.\d+\.(?:attention\.)?)ln\.", r"\1LayerNorm.", name)
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return name


def restore_name(name: str) -> str:
    """Invert `rename`."""
    name = re.sub(r"(\.\d+\.(?:attention\.)?)LayerNorm\.", r"\1ln.", name)
    for ours, theirs in NAMES.items():
        name = name.replace(theirs, ours)
    return name
