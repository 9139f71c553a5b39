"""Which Triton kernels are used: on a GPU, all but those that are switched off."""

import importlib.util
from collections.abc import Iterable
from typing import Literal

import torch

Kernel = Literal["loss", "embedding", "norm", "attention", "feed-forward"]  # each with its backward pass

# Triton comes with the builds of torch for CUDA.
HAS_TRITON = importlib.util.find_spec("triton") is not None

_off: set[Kernel] = set()


def can_run(device: torch.device) -> bool:
    """Whether a device is of a kind that has kernels."""
    return device.type == "cuda"


def is_on(kernel: Kernel, x: torch.Tensor) -> bool:
    """Whether a kernel computes with a tensor; if not, torch's operations do."""
    return can_run(x.device) and HAS_TRITON and kernel not in _off


def switch_off(which: Iterable[Kernel]) -> None:
    """Use torch's operations in place of these kernels, in this process from now on."""
    _off.update(which)


def switch_on_all() -> None:
    """Use all kernels again."""
    _off.clear()


def switched_off() -> frozenset[Kernel]:
    """The kernels that are switched off."""
    return frozenset(_off)
