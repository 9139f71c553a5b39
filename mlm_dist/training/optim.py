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
from mlm_dist.training.normuon import NorMuon, initial_state


def build_optimizers(model: MaskedModel, config: OptimConfig) -> list[torch.optim.Optimizer]:
    """Build the optimizers of a model. Matrices have weight decay, norms and biases have none.

    With `muon`, Muon (Jordan et al. 2024) optimizes the hidden matrices of the model. It orthogonalizes their updates,
    so that directions with small gradients are learned too. With `normuon`, NorMuon does. AdamW optimizes embeddings,
    output layer and vectors. Every parameter group has a `relative_lr`, by which the learning rate of the step is
    multiplied.
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
    if hidden and config.name == "normuon":
        optimizers.append(NorMuon(hidden, config.muon_lr, config.weight_decay))
    elif hidden:
        # Updates of any shape have the same size as AdamW's at the same rate (Liu et al. 2025, arXiv 2502.16982).
        muon = torch.optim.Muon(
            hidden, lr=config.muon_lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        optimizers.append(muon)
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
    if isinstance(optimizer, torch.optim.Muon):
        return {"momentum_buffer": parameter.shape}
    if isinstance(optimizer, NorMuon):
        return {name: value.shape for name, value in initial_state(parameter).items()}
    return {"step": torch.Size(), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}


def can_update_without_host(optimizers: list[torch.optim.Optimizer], scaler: torch.amp.GradScaler) -> bool:
    """Whether `update_without_host` can take the place of `update`: not with Muon, and not in fp16."""
    return not scaler.is_enabled() and all(isinstance(optimizer, torch.optim.AdamW) for optimizer in optimizers)


def update_without_host(
    parameters: list[nn.Parameter], optimizers: list[torch.optim.Optimizer], lr: torch.Tensor, grad_clip: float
) -> torch.Tensor:
    """Update like `update`, but let the device clip the gradient and skip the step, so that the host waits for nothing.

    The fused AdamW divides the gradient by its `grad_scale` and does nothing if its `found_inf` is 1, as with a scaler.
    `lr` is a float32 scalar, because a captured graph would keep a Python number.
    """
    norm = get_total_norm(parameter.grad for parameter in parameters if parameter.grad is not None)
    set_learning_rate(optimizers, lr)
    for optimizer in optimizers:
        settings: Any = optimizer
        settings.grad_scale = (norm / grad_clip).clamp(min=1) if grad_clip else torch.ones_like(norm)
        settings.found_inf = 1 - norm.isfinite().to(norm.dtype)
        optimizer.step()
        optimizer.zero_grad()
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
