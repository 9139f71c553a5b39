"""AdamW, or Muon and AdamW side by side, and the learning rate as a function of the step."""

import math
from typing import Any, NamedTuple

import torch
from torch import nn

from mlm_dist.config import OptimConfig
from mlm_dist.model.encoder import Encoder, is_plain


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


def check_state(optimizer: torch.optim.Optimizer, state: Any) -> None:
    """Compare the state of an optimizer from a checkpoint with the weights: torch itself would fail in the next step.

    Raises:
        AttributeError, TypeError, ValueError: it is of another optimizer, or of weights of other shapes.
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
    """Give every group of weights its share of the step's learning rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group["relative_lr"]


class Schedule(NamedTuple):
    """How long the parts of a learning-rate schedule are, fitted to the length of the run.

    Attributes:
        warmup_iters: steps of the warm-up.
        decay_iters: steps over which the rate falls at the end of the run; with wsd perhaps not a whole number.
    """

    warmup_iters: int
    decay_iters: float


def fit_schedule(max_iters: int, config: OptimConfig) -> Schedule:
    """Shorten the parts of a schedule where the run is too short for them.

    The warm-up takes at most half of the run, and the decay of wsd begins when the warm-up has ended, at the earliest.
    So every run reaches its peak rate, and no step changes the rate by more than the ramps do. A schedule that fits is
    left as it is.
    """
    warmup_iters = min(config.warmup_iters, max_iters // 2)
    rest = max_iters - warmup_iters
    if config.schedule == "constant":
        return Schedule(warmup_iters, 0.0)
    if config.schedule != "wsd":
        return Schedule(warmup_iters, rest)
    decay_iters = config.decay_fraction * max_iters
    # 0.55 * 100 is 55.00000000000001, which fits into 55 steps.
    fits = decay_iters < rest or math.isclose(decay_iters, rest)
    return Schedule(warmup_iters, decay_iters if fits else rest)


def shortened_parts(max_iters: int, config: OptimConfig) -> list[str]:
    """Say what `fit_schedule` has shortened, a line for each part."""
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
    """The learning rate of a step, as a function of `lr`; Muon's follows it in proportion.

    Args:
        step: counted from 0.
        max_iters: steps of the whole run.
        config: peak, schedule, warm-up and decay, which are fitted to the run (`fit_schedule`).
    """
    fitted = fit_schedule(max_iters, config)
    if step < fitted.warmup_iters:
        return config.lr * (step + 1) / fitted.warmup_iters
    if config.schedule == "constant":
        return config.lr
    # Above 1 before the decay of wsd begins; the last step still has one step's part of the peak.
    part_left = (max_iters - step) / max(1.0, fitted.decay_iters)
    if config.schedule == "wsd":  # warmup-stable-decay: Hu et al. 2024, "MiniCPM"
        return config.lr * min(1.0, part_left)
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 - math.cos(math.pi * part_left))
    return config.lr * part_left
