"""The learning-rate schedule."""

import math
from typing import NamedTuple

from mlm_dist.config import OptimConfig


class Schedule(NamedTuple):
    """The parts of a learning-rate schedule, fitted to the length of the run.

    Attributes:
        warmup_iters: steps of the warmup.
        decay_iters: steps of the decay at the end of the run; with wsd, not necessarily a whole number.
    """

    warmup_iters: int
    decay_iters: float


def fit_schedule(max_iters: int, config: OptimConfig) -> Schedule:
    """Shorten the parts of a schedule that are too long for the run.

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


def decay_start(max_iters: int, config: OptimConfig) -> int:
    """The last step whose learning rate is not below the peak; `max_iters` if the rate does not decay."""
    return math.floor(max_iters - fit_schedule(max_iters, config).decay_iters)


def shortened_parts(max_iters: int, config: OptimConfig) -> list[str]:
    """One line for each part that `fit_schedule` has shortened."""
    warmup_iters, decay_iters = fit_schedule(max_iters, config)
    lines = []
    if warmup_iters < config.warmup_iters:
        lines.append(
            f"optim.warmup_iters {config.warmup_iters} is more than half of train.max_iters {max_iters}: "
            f"the warmup takes {count_steps(warmup_iters)}"
        )
    if config.schedule == "wsd" and decay_iters < config.decay_fraction * max_iters:
        lines.append(
            f"optim.decay_fraction {config.decay_fraction:g} of train.max_iters {max_iters} is more than the warmup "
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
        config: peak rate, schedule, warmup and decay, which `fit_schedule` fits to the run.
    """
    fitted = fit_schedule(max_iters, config)
    if step < fitted.warmup_iters:
        return config.lr * (step + 1) / fitted.warmup_iters
    if config.schedule == "constant":
        return config.lr
    # Above 1 before the decay of wsd, and above 0 in the last step.
    fraction_left = (max_iters - step) / max(1.0, fitted.decay_iters)
    if config.schedule == "wsd":  # warmup-stable-decay: Hu et al. 2024, "MiniCPM"
        return config.lr * min(1.0, fraction_left)
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 - math.cos(math.pi * fraction_left))
    return config.lr * fraction_left
