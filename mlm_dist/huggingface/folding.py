"""Folding the parameters that an `Encoder` lacks into others: what is computed stays the same without them.

In an export, they change nothing. Fine-tuning in transformers moves them:

- The embedding of the first segment is added to all positions.
- The key bias adds the same to the scores of all keys, which softmax ignores.
- The value bias adds the same to all outputs of the attention, since its weights sum to 1. The projection maps it to a
  part of its own bias.
- The query bias b becomes a shift d of the LayerNorm before the attention, with W_query d = b. The shift moves the keys
  by a constant, which softmax ignores, and the values by W_value d, which is subtracted from the value bias. If
  positions are rotary, softmax does not ignore what the keys are moved by, so d has to fit the key bias too.
- The transform before the output layer is more than a LayerNorm can represent. `fold_head` finds the nearest one.
"""

import torch
import torch.nn.functional as F

from mlm_dist.config import ModelConfig
from mlm_dist.huggingface.megatron_bert import (
    FINAL_NORM,
    POSITION_EMBEDDING,
    QUERY_KEY_VALUE,
    SEGMENT_EMBEDDING,
    TRANSFORM,
    identity_offset,
    layer_name,
)
from mlm_dist.model.activation import ACTIVATIONS
from mlm_dist.model.encoder import LAYER_NORM_EPS

# Singular values of W_query below this fraction of the largest are taken as 0. A shift that they need would be so large
# that float32 rounds away what it is added to.
SMALLEST_SINGULAR_VALUE = 1e-5

# A channel of the states that varies less than this keeps its scale.
SMALLEST_VARIANCE = 1e-6


def fold_body(parameters: dict[str, torch.Tensor], model: ModelConfig) -> float:
    """Fold the segment embedding and the biases of queries, keys and values, in place. Those that are zeros do nothing.

    Args:
        parameters: float32 tensors by the names of transformers.
        model: their shape.

    Returns:
        The largest fraction of the norm of a query bias, or with rotary positions of query and key bias, that could not
        be folded. It is usually 0, unless positions are rotary.
    """
    segment = parameters[SEGMENT_EMBEDDING][0] if model.positions == "learned" else torch.zeros(())
    if segment.any():
        parameters[POSITION_EMBEDDING] = parameters[POSITION_EMBEDDING] + segment
    queries = ("query", "key") if model.positions == "rope" else ("query",)
    return max(fold_attention(parameters, layer_name(i), queries) for i in range(model.blocks))


def fold_attention(parameters: dict[str, torch.Tensor], layer: str, shifted: tuple[str, ...]) -> float:
    """Fold the biases of a block, whose names begin with `layer`, those of `shifted` into the LayerNorm.

    Returns:
        The lost fraction, as `fold_body`.
    """
    norm, projection = f"{layer}attention.ln.bias", f"{layer}attention.output.dense"
    weights, biases = (
        {name: parameters[f"{layer}attention.self.{name}.{kind}"].double() for name in QUERY_KEY_VALUE}
        for kind in ("weight", "bias")
    )
    lost = 0.0
    weight, bias = (torch.cat([part[name] for name in shifted]) for part in (weights, biases))
    if bias.any():
        solution = torch.linalg.lstsq(weight, bias[:, None], rcond=SMALLEST_SINGULAR_VALUE, driver="gelsd").solution[
            :, 0
        ]
        before = parameters[norm].double()
        parameters[norm] = (before + solution).float()
        shift = parameters[norm].double() - before  # as rounded
        lost = ((bias - weight @ shift).norm() / bias.norm()).item()
        biases["value"] = biases["value"] - weights["value"] @ shift
    if biases["value"].any():
        moved = parameters[f"{projection}.weight"].double() @ biases["value"]
        parameters[f"{projection}.bias"] = (parameters[f"{projection}.bias"].double() + moved).float()
    return lost


def is_identity(parameters: dict[str, torch.Tensor], model: ModelConfig) -> bool:
    """Whether the layers before the LayerNorm of the transform are as exported: it gets what the last block returns."""
    scale, shift = (parameters[f"{FINAL_NORM}.{kind}"] for kind in ("weight", "bias"))
    weight, bias = (parameters[f"{TRANSFORM}.dense.{kind}"] for kind in ("weight", "bias"))
    return (
        torch.equal(weight, torch.eye(len(bias)))
        and not (scale != 1).any()
        and not shift.any()
        and bool((bias == identity_offset(model)).all())
    )


def fold_head(parameters: dict[str, torch.Tensor], model: ModelConfig, states: torch.Tensor) -> float:
    """Fold the layers before the LayerNorm of the transform into its scale and shift, in place.

    They may mix channels, which no scale and shift can do. The scale and shift are those with the smallest mean square
    error on some states.

    Args:
        parameters: float32 tensors by the names of transformers.
        model: their shape.
        states: (N, C) normalized outputs of the last block.

    Returns:
        The drift: the root mean square of the error, as a fraction of what the LayerNorm of the transform normalizes
        to. It is 0 if only a scale and shift have changed.
    """
    weight, bias = (parameters[f"{TRANSFORM}.dense.{kind}"].double() for kind in ("weight", "bias"))
    scale, shift = (parameters[f"{FINAL_NORM}.{kind}"].double() for kind in ("weight", "bias"))
    states = F.layer_norm(states.double(), bias.shape, eps=LAYER_NORM_EPS)
    transformed = ACTIVATIONS[model.activation](F.linear(states * scale + shift, weight, bias))
    outputs = F.layer_norm(transformed, bias.shape, eps=LAYER_NORM_EPS)
    covariance, variance = (((states - states.mean(0)) * other).mean(0) for other in (outputs, states))
    gain = (covariance + SMALLEST_VARIANCE) / (variance + SMALLEST_VARIANCE)
    move = outputs.mean(0) - gain * states.mean(0)
    norm = f"{TRANSFORM}.LayerNorm"
    before = parameters[f"{norm}.weight"].double()
    parameters[f"{norm}.weight"] = (before * gain).float()
    parameters[f"{norm}.bias"] = (parameters[f"{norm}.bias"].double() + before * move).float()
    return (outputs - states * gain - move).square().mean().sqrt().item()
