"""AdamW, or Muon and AdamW side by side, and the learning rate as a function of the step."""

import math

import torch
from torch import nn

from mlm_dist.config import OptimConfig
from mlm_dist.model.encoder import Encoder


def build_optimizers(model: nn.Module, config: OptimConfig) -> list[torch.optim.Optimizer]:
    """Make the optimizers of a model, each weight in one of them, with decay on matrices but not on norms and biases.

    With `muon` the matrices inside an encoder's blocks go to Muon (Jordan et al. 2024), which orthogonalises their
    updates, so that directions with small gradients are learned too; embeddings, the output layer and vectors stay with
    AdamW. Every group of weights knows its `relative_lr`, the factor of the step's learning rate.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    hidden: list[nn.Parameter] = []
    if config.name == "muon" and isinstance(model, Encoder):
        hidden = [weight for weight in model.blocks.parameters() if weight.ndim == 2]
    rest = [weight for weight in weights if all(weight is not other for other in hidden)]
    groups = [
        {"params": [weight for weight in rest if weight.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [weight for weight in rest if weight.ndim < 2], "weight_decay": 0.0},
    ]
    # The fused implementation updates all weights in one kernel instead of a dozen small ones each.
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=config.lr, fused=True)]
    if hidden:
        # Updates as long as AdamW's at the same rate (Liu et al. 2025, arXiv 2502.16982), whatever a matrix's shape.
        muon = torch.optim.Muon(
            hidden, lr=config.muon_lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        optimizers.append(muon)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["relative_lr"] = group["lr"] / config.lr
    return optimizers


def set_learning_rate(optimizers: list[torch.optim.Optimizer], rate: float) -> None:
    """Give every group of weights its share of the step's learning rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group["relative_lr"]


def learning_rate(step: int, max_iters: int, config: OptimConfig) -> float:
    """The learning rate of a step, as a function of `lr`; Muon's follows it in proportion.

    Args:
        step: counted from 0.
        max_iters: steps of the whole run.
        config: peak, schedule and warm-up.
    """
    if step < config.warmup_iters:
        return config.lr * (step + 1) / config.warmup_iters
    left = max_iters - step
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "wsd":  # warmup-stable-decay: Hu et al. 2024, "MiniCPM"
        return config.lr * min(1.0, left / max(1.0, config.decay_fraction * max_iters))
    part_left = left / max(1, max_iters - config.warmup_iters)
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 - math.cos(math.pi * part_left))
    return config.lr * part_left
