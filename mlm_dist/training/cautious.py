"""Cautious weight decay (Chen et al. 2025, arXiv 2510.12402): only what the update makes smaller decays."""

from typing import Any

import torch


def decay_cautiously(optimizer: torch.optim.Optimizer) -> None:
    """Take over the weight decay of an optimizer: it decays the elements whose update has the sign of the element.

    An update is what is subtracted, so it makes these elements smaller in absolute value. If the optimizer skips a
    step, no element moves, and nothing decays.
    """
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    before: list[list[torch.Tensor]] = []

    def remember(*_: Any) -> None:
        before[:] = [
            [parameter.detach().clone() for parameter in group["params"]] if decay else []
            for group, decay in zip(optimizer.param_groups, decays, strict=True)
        ]

    @torch.no_grad()
    def decay(*_: Any) -> None:
        for group, rate, olds in zip(optimizer.param_groups, decays, before, strict=True):
            for parameter, old in zip(group["params"], olds, strict=False):
                agrees = (old - parameter) * old > 0
                parameter.sub_(torch.where(agrees, group["lr"] * rate * old, 0))
        before.clear()

    optimizer.register_step_pre_hook(remember)
    optimizer.register_step_post_hook(decay)
