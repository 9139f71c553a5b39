"""The optimizers: AdamW, or Muon or NorMuon with AdamW."""

import math
from typing import Any

import torch
from torch import nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from mlm_dist.config import OptimConfig
from mlm_dist.model.masked_model import MaskedModel
from mlm_dist.model.registry import is_plain
from mlm_dist.training.cautious import decay_cautiously
from mlm_dist.training.muon import Muon, NorMuon


def build_optimizers(model: MaskedModel, config: OptimConfig) -> list[torch.optim.Optimizer]:
    """Build the optimizers of a model. Matrices have weight decay, norms and biases have none.

    With `muon`, Muon optimizes the hidden matrices of the model, with `normuon`, NorMuon does. AdamW optimizes
    embeddings, output layer and vectors. Every parameter group has a `relative_lr`, by which the learning rate of the
    step is multiplied.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    hidden = model.hidden_matrices() if config.name != "adamw" else []
    rest = [parameter for parameter in parameters if all(parameter is not matrix for matrix in hidden)]
    groups = [
        {"params": [parameter for parameter in rest if parameter.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [parameter for parameter in rest if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    # The fused implementation updates all parameters in one kernel instead of a dozen kernels per parameter.
    adamw = torch.optim.AdamW(groups, lr=config.lr, fused=True, capturable=parameters[0].is_cuda)
    optimizers: list[torch.optim.Optimizer] = [adamw]
    if hidden:
        muon = NorMuon if config.name == "normuon" else Muon
        optimizers.append(muon(hidden, config.muon_lr, config.weight_decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["relative_lr"] = group["lr"] / config.lr
        if config.cautious_weight_decay:
            decay_cautiously(optimizer)
    return optimizers


def check_state(optimizer: torch.optim.Optimizer, state: Any) -> None:
    """Check that the state in a checkpoint fits the optimizer. torch itself would only fail in the next step.

    Raises:
        AttributeError, TypeError, ValueError: it belongs to a different optimizer, or to parameters of different
            shapes.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not state.keys() <= set(range(len(parameters))):
        raise ValueError("it has more parameters")
    for index, values in state.items():
        shapes = state_shapes(optimizer, parameters[index])
        if {name: value.shape for name, value in values.items()} != shapes or not all(map(is_plain, values.values())):
            raise ValueError("it belongs to a different optimizer, or to parameters of different shapes")


def state_shapes(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, torch.Size]:
    """The shapes of the state of a parameter, by name."""
    if isinstance(optimizer, Muon):
        return {name: value.shape for name, value in optimizer.initial_state(parameter).items()}
    return {"step": torch.Size(), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}


def update_without_host(
    parameters: list[nn.Parameter],
    optimizers: list[torch.optim.Optimizer],
    scaler: torch.amp.GradScaler,
    lr: torch.Tensor,
    grad_clip: float,
) -> torch.Tensor:
    """Update like `update`, but let the device clip the gradient and skip the step, so that the host waits for nothing.

    The fused AdamW and Muon divide the gradient by their `grad_scale` and do nothing if their `found_inf` is 1. `lr` is
    a float32 scalar, because a captured graph would keep a Python number.
    """
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    norm = get_total_norm(parameter.grad for parameter in parameters if parameter.grad is not None)
    grad_scale = (norm / grad_clip).clamp(min=1) if grad_clip else torch.ones_like(norm)
    found_inf = 1 - norm.isfinite().to(norm.dtype)
    set_learning_rate(optimizers, lr)
    for optimizer in optimizers:
        settings: Any = optimizer
        settings.grad_scale, settings.found_inf = grad_scale, found_inf
        optimizer.step()
        optimizer.zero_grad()
    scaler.update()
    return norm


def update(
    parameters: list[nn.Parameter],
    optimizers: list[torch.optim.Optimizer],
    scaler: torch.amp.GradScaler,
    lr: float,
    grad_clip: float,
) -> torch.Tensor:
    """Update the parameters if the gradient is finite, clear the gradient, and return its norm before clipping.

    Args:
        parameters: all parameters of the model, with their gradients.
        optimizers: each updates some of the parameters.
        scaler: the scaler of fp16 gradients; disabled in other precisions.
        lr: the learning rate of the step.
        grad_clip: maximum norm of the gradient, which is scaled down to it; 0 for no maximum.
    """
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    norm = get_total_norm(parameter.grad for parameter in parameters if parameter.grad is not None)
    grad_norm = norm.item()
    max_norm = grad_clip or math.inf
    if grad_norm > max_norm:
        clip_grads_with_norm_(parameters, max_norm, norm)
    set_learning_rate(optimizers, lr)
    for optimizer in optimizers:
        if math.isfinite(grad_norm):
            scaler.step(optimizer)
        optimizer.zero_grad()
    scaler.update()
    return norm


def set_learning_rate(optimizers: list[torch.optim.Optimizer], lr: float | torch.Tensor) -> None:
    """Set the learning rate of every parameter group."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr * group["relative_lr"]
