"""The modules of the Triton kernels, written in torch's operations, for tests without Triton."""

import sys
import types
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mlm_dist.model import kernels, loss, low_precision, selection


def replace_by_gradient(
    logits: torch.Tensor, bias: torch.Tensor, targets: torch.Tensor, scale: float, softcap: float | None = None
) -> torch.Tensor:
    full = logits[:, : len(bias)].float() + bias
    losses = loss.replace_by_gradient(full, targets, softcap)
    logits[:, : len(bias)] = full * scale
    return losses


def pad_vocabulary(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return F.pad(weight.to(dtype), (0, 0, 0, -len(weight) % 64))


def column_sums(matrix: torch.Tensor, row_weights: torch.Tensor) -> torch.Tensor:
    return matrix.float().t() @ row_weights


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a.float() @ b.float()


def look_up(weight: torch.Tensor, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return (weight[tokens] + positions).bfloat16()


def add_rows(weight: torch.Tensor, tokens: torch.Tensor, gradient: torch.Tensor) -> None:
    weight.index_add_(0, tokens.flatten(), gradient.flatten(0, 1).float())


def add_norm(
    x: torch.Tensor, branch: torch.Tensor | None, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    total = x if branch is None else x + branch
    rows = total.float().flatten(0, -2)
    statistics = torch.stack([rows.mean(1), 1 / (rows.var(1, correction=0) + eps).sqrt()])
    return total, F.layer_norm(total.float(), weight.shape, weight.float(), bias.float(), eps).to(x.dtype), statistics


def add_norm_backward(
    of_total: torch.Tensor, of_normed: torch.Tensor, total: torch.Tensor, weight: torch.Tensor, statistics: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    gradient, rows = of_normed.float().flatten(0, -2), total.float().flatten(0, -2)
    normal = (rows - statistics[0, :, None]) * statistics[1, :, None]
    of_parameters = torch.stack([(gradient * normal).sum(0), gradient.sum(0)]).to(weight.dtype)
    gradient = gradient * weight.float()
    centred = gradient - gradient.mean(1, keepdim=True) - normal * (gradient * normal).mean(1, keepdim=True)
    of_x = of_total.float() + (centred * statistics[1, :, None]).view(total.shape)
    return of_x.to(total.dtype), of_parameters


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int) -> torch.Tensor:
    split = [part.view(*part.shape[:2], heads, -1).transpose(1, 2) for part in (query, key, value)]
    scores: torch.Tensor = split[0] @ split[1].transpose(-2, -1) * split[0].shape[-1] ** -0.5
    return (scores.softmax(-1) @ split[2]).transpose(1, 2).flatten(2)


def attend_backward(gradient: torch.Tensor, *rest: Any) -> None:
    *tensors, heads = rest
    with torch.enable_grad():
        given = [tensor.detach().requires_grad_() for tensor in tensors[:3]]
        found = torch.autograd.grad(attend(given[0], given[1], given[2], heads), given, gradient)
    for written, value in zip(tensors[3:], found, strict=True):
        written.copy_(value)


def gradient_before_relu(
    gradient: torch.Tensor, weight: torch.Tensor, activation: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    result = (gradient.float() @ weight.float()).masked_fill(activation <= 0, 0)
    return result.to(activation.dtype), result.sum(0).to(activation.dtype)


MODULES: dict[str, list[Any]] = {
    "loss_kernel": [replace_by_gradient, pad_vocabulary, column_sums, product],
    "embedding_kernel": [look_up, add_rows],
    "norm_kernel": [add_norm, add_norm_backward],
    "attention_kernel": [attend, attend_backward],
    "relu_kernel": [gradient_before_relu],
}


def fail(*_: object) -> Any:
    """In place of a kernel that cannot be started."""
    raise RuntimeError("no such instruction")


def install(patch: pytest.MonkeyPatch) -> None:
    """Let the model use kernels in bf16 on a CPU, as on a GPU, with these in place of those of Triton."""
    import mlm_dist.model

    for name, functions in MODULES.items():
        module = types.ModuleType(name)
        for function in functions:
            setattr(module, function.__name__, function)
        patch.setitem(sys.modules, f"mlm_dist.model.{name}", module)
        patch.setattr(mlm_dist.model, name, module, raising=False)
    patch.setattr(kernels, "HAS_TRITON", True)
    patch.setattr(kernels, "_off", set())
    patch.setattr(kernels, "can_run", lambda device: True)
    patch.setattr(low_precision, "dtype_of_blocks", lambda x: torch.bfloat16)
    patch.setattr(selection, "adds_in_place", lambda matrix: True)
