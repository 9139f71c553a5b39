"""Folding the parameters that an `Encoder` lacks into others: what is computed stays the same without them.

In an export, they change nothing. Fine-tuning in transformers moves them:

- The embedding of the first segment is added to all positions.
- The key bias adds the same to the scores of all keys, which softmax ignores.
- The value bias adds the same to all outputs of the attention, since its weights sum to 1. The projection maps it to a
  part of its own bias.
- The query bias b becomes a shift d of the LayerNorm before the attention, with W_query d = b. The shift moves the keys
  by a constant, which softmax ignores, and the values by W_value d, which is subtracted from the value bias.
- The transform before the output layer is more than a LayerNorm can represent. `fold_head` finds the nearest LayerNorm.
"""

import torch

from mlm_dist.config import ModelConfig
from mlm_dist.huggingface.megatron_bert import (
    FINAL_NORM,
    POSITION_EMBEDDING,
    QUERY_KEY_VALUE,
    SEGMENT_EMBEDDING,
    TRANSFORM,
    layer_name,
)

# Singular values of W_query below this fraction of the largest are taken as 0. A shift that they need would be so large
# that float32 rounds away what it is added to.
SMALLEST_SINGULAR_VALUE = 1e-5

# Differences of this size are rounding errors of float32.
ROUNDING = 1e-6


def fold_body(parameters: dict[str, torch.Tensor], model: ModelConfig) -> float:
    """Fold the segment embedding and the biases of queries, keys and values, in place. Those that are zeros do nothing.

    Args:
        parameters: float32 tensors by the names of transformers.
        model: their shape.

    Returns:
        The largest fraction of the norm of a query bias that could not be folded, because W_query is nearly singular.
        It is usually 0.
    """
    segment = parameters[SEGMENT_EMBEDDING][0]
    if segment.any():
        parameters[POSITION_EMBEDDING] = parameters[POSITION_EMBEDDING] + segment
    return max(fold_attention(parameters, layer_name(i)) for i in range(model.blocks))


def fold_attention(parameters: dict[str, torch.Tensor], layer: str) -> float:
    """Fold the biases of a block, whose names begin with `layer`. Returns the lost fraction, as `fold_body`."""
    norm, projection = f"{layer}attention.ln.bias", f"{layer}attention.output.dense"
    weights, biases = (
        {name: parameters[f"{layer}attention.self.{name}.{kind}"].double() for name in QUERY_KEY_VALUE}
        for kind in ("weight", "bias")
    )
    lost = 0.0
    if biases["query"].any():
        solution = torch.linalg.lstsq(
            weights["query"], biases["query"][:, None], rcond=SMALLEST_SINGULAR_VALUE, driver="gelsd"
        ).solution[:, 0]
        before = parameters[norm].double()
        parameters[norm] = (before + solution).float()
        shift = parameters[norm].double() - before  # as rounded
        lost = ((biases["query"] - weights["query"] @ shift).norm() / biases["query"].norm()).item()
        biases["value"] = biases["value"] - weights["value"] @ shift
    if biases["value"].any():
        moved = parameters[f"{projection}.weight"].double() @ biases["value"]
        parameters[f"{projection}.bias"] = (parameters[f"{projection}.bias"].double() + moved).float()
    return lost


def fold_head(parameters: dict[str, torch.Tensor]) -> float:
    """Fold the final LayerNorm and the dense layer of the transform into its LayerNorm, in place.

    Together, they map a normalised vector x to M x + t before the LayerNorm of the transform, as far as ReLU cuts
    nothing off. Of M, its diagonal is kept. The mean square over normalised vectors, all directions being alike,
    replaces the variance of each vector.

    Returns:
        The drift: the root mean square of what is lost, as a fraction of what the LayerNorm of the transform returns
        before its scale and shift. It does not change if M and t are multiplied by a number. 0: nothing is lost.
    """
    scale, shift = (parameters[f"{FINAL_NORM}.{kind}"].double() for kind in ("weight", "bias"))
    weight, bias = (parameters[f"{TRANSFORM}.dense.{kind}"].double() for kind in ("weight", "bias"))
    width = len(bias)
    centre = torch.eye(width, dtype=torch.float64) - 1 / width
    matrix, offset = centre @ (weight * scale) @ centre, centre @ (weight @ shift + bias)
    diagonal = matrix.diagonal() * width / (width - 1)
    rest = matrix - diagonal[:, None] * centre
    size, lost = (
        ((part.square().sum() * width / (width - 1) + extra) / width).sqrt()
        for part, extra in ((matrix, offset.square().sum()), (rest, 0.0))
    )
    drift = (lost / size).item()
    norm = f"{TRANSFORM}.LayerNorm"
    gain, move = diagonal / size, offset / size
    if max((gain - 1).abs().max(), move.abs().max()) > ROUNDING:
        before = parameters[f"{norm}.weight"].double()
        parameters[f"{norm}.weight"] = (before * gain).float()
        parameters[f"{norm}.bias"] = (parameters[f"{norm}.bias"].double() + before * move).float()
    return drift
