"""The loss: cross-entropy summed over the places that count."""

import torch
import torch.nn.functional as F


def masked_cross_entropy(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Sum of the cross-entropy over predicted places, in nats.

    A sum and not a mean, because the mean is to be taken over the places of the whole global batch, of which this
    may be a part: whoever adds the parts up divides.

    Args:
        logits: (B, K, V), of any floating type.
        targets: (B, K) token ids.
        weights: (B, K), 0 for places that do not count.
    """
    losses = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
    return torch.dot(losses, weights.flatten())
