"""Optimizers (AdamW, or Muon with AdamW) and the learning-rate schedule."""

import math
from typing import Any, NamedTuple

import torch

from mlm_dist.config import OptimConfig
from mlm_dist.model.masked_model import MaskedModel
from mlm_dist.model.registry import is_plain


def build_optimizers(model: MaskedModel, config: OptimConfig) -> list[torch.optim.Optimizer]:
    """Build the optimizers of a model. Matrices have weight decay, norms and biases have none.

    With `muon`, Muon (Jordan et al. 2024) optimizes the hidden matrices of the model. It orthogonalizes their updates,
    so that directions with small gradients are learned too. AdamW optimizes embeddings, output layer and vectors. Every
    parameter group has a `relative_lr`, by which the learning rate of the step is multiplied.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    hidden = model.hidden_matrices() if config.name == "muon" else []
    rest = [weight for weight in weights if all(weight is not other for other in hidden)]
    groups = [
        {"params": [weight for weight in rest if weight.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [weight for weight in rest if weight.ndim < 2], "weight_decay": 0.0},
    ]
    # The fused implementation updates all parameters in one kernel instead of a dozen kernels for each.
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=config.lr, fused=True)]
    if hidden:
        # Updates of the same size as AdamW's at the same rate, for every shape (Liu et al. 2025, arXiv 2502.16982).
        muon = torch.optim.Muon(
            hidden, lr=config.muon_lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        optimizers.append(muon)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["relative_lr"] = group["lr"] / config.lr
    return optimizers


def check_state(optimizer: torch.optim.Optimizer, state: Any) -> None:
    """Check that the state of a checkpoint fits the optimizer. torch itself would only fail in the next step.

    Raises:
        AttributeError, TypeError, ValueError: it is of another optimizer, or of parameters of other shapes.
    """
    names = {"momentum_buffer"} if isinstance(optimizer, torch.optim.Muon) else {"step", "exp_avg", "exp_avg_sq"}
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    if not state.keys() <= set(range(len(weights))):
        raise ValueError("it has more weights")
    for number, values in state.items():
        shapes = {name: torch.Size() if name == "step" else weights[number].shape for name in names}
        if {name: value.shape for name, value in values.items()} != shapes or not all(map(is_plain, values.values())):
            raise ValueError("it is of another optimizer, or of weights of other shapes")


def set_learning_rate(optimizers: list[torch.optim.Optimizer], rate: float) -> None:
    """Set the learning rate of every parameter group."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group["relative_lr"]


class Schedule(NamedTuple):
    """The phases of a learning-rate schedule, fitted to the length of the run.

    Attributes:
        warmup_iters: steps of the warmup.
        decay_iters: steps of the decay at the end of the run; with wsd, not necessarily a whole number.
    """

    warmup_iters: int
    decay_iters: float


def fit_schedule(max_iters: int, config: OptimConfig) -> Schedule:
    """Shorten the phases of a schedule that are too long for the run.

    The warmup takes at most half of the run, and the decay of wsd starts after the warmup. So every run reaches its
    peak rate, and the rate never jumps. A schedule that fits is not changed.
    """
    warmup_iters = min(config.warmup_iters, max_iters // 2)
    rest = max_iters - warmup_iters
    if config.schedule == "constant":
        return Schedule(warmup_iters, 0.0)
    if config.schedule != "wsd":
        return Schedule(warmup_iters, rest)
    decay_iters = config.decay_fraction * max_iters
    # 0.55 * 100 is 55.00000000000001, which fits 55 steps.
    fits = decay_iters < rest or math.isclose(decay_iters, rest)
    return Schedule(warmup_iters, decay_iters if fits else rest)


def shortened_parts(max_iters: int, config: OptimConfig) -> list[str]:
    """One line for each phase that `fit_schedule` has shortened."""
    warmup_iters, decay_iters = fit_schedule(max_iters, config)
    lines = []
    if warmup_iters < config.warmup_iters:
        lines.append(
            f"optim.warmup_iters {config.warmup_iters} is more than half of train.max_iters {max_iters}: "
            f"the warm-up takes {count_steps(warmup_iters)}"
        )
    if config.schedule == "wsd" and decay_iters < config.decay_fraction * max_iters:
        lines.append(
            f"optim.decay_fraction {config.decay_fraction:g} of train.max_iters {max_iters} is more than the warm-up "
            f"leaves: the decay takes {count_steps(round(decay_iters))}"
        )
    return lines


def count_steps(count: int) -> str:
    """A number of steps, in words."""
    return f"{count} step" if count == 1 else f"{count} steps"


def learning_rate(step: int, max_iters: int, config: OptimConfig) -> float:
    """The learning rate of a step; that of Muon is proportional to it.

    Args:
        step: from 0.
        max_iters: steps of the whole run.
        config: peak, schedule, warmup and decay, which are fitted to the run (`fit_schedule`).
    """
    fitted = fit_schedule(max_iters, config)
    if step < fitted.warmup_iters:
        return config.lr * (step + 1) / fitted.warmup_iters
    if config.schedule == "constant":
        return config.lr
    # Above 1 before the decay of wsd. The last step has a rate above 0.
    part_left = (max_iters - step) / max(1.0, fitted.decay_iters)
    if config.schedule == "wsd":  # warmup-stable-decay: Hu et al. 2024, "MiniCPM"
        return config.lr * min(1.0, part_left)
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 - math.cos(math.pi * part_left))
    return config.lr * part_left
