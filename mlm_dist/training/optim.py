"""AdamW over two groups of weights, and the learning rate as a function of the step."""

import math

import torch
from torch import nn

from mlm_dist.config import OptimConfig


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Make an AdamW that decays matrices and leaves norms and biases alone.

    The fused implementation updates all weights in one kernel instead of a dozen small ones each.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in weights if weight.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [weight for weight in weights if weight.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)


def learning_rate(step: int, max_iters: int, config: OptimConfig) -> float:
    """The learning rate of a step.

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
