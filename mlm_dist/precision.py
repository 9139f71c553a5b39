"""The dtype of matrix products. Parameters, optimizer state and loss are always fp32."""

from contextlib import AbstractContextManager
from typing import Literal

import torch

from mlm_dist.errors import UserError

Precision = Literal["auto", "bf16", "fp16", "fp32"]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def choose_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The dtype of a precision. `auto` is bf16 if the device has instructions for it, else fp16 on GPUs, fp32 on CPUs.

    Raises:
        UserError: bf16 is requested on a GPU without bf16 instructions.
    """
    if precision != "auto":
        if precision == "bf16" and device.type == "cuda" and not computes_in_bf16(device):
            name = torch.cuda.get_device_name(device)
            raise UserError(f"precision: bf16, but {name} does not support it: use fp16 or auto")
        return DTYPES[precision]
    if computes_in_bf16(device):
        return torch.bfloat16
    return torch.float16 if device.type == "cuda" else torch.float32


def computes_in_bf16(device: torch.device) -> bool:
    """Whether a device has bf16 instructions. Emulation is slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # torch has no public function for this yet. If a release lacks these private ones, `auto` is fp32.
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(check() for check in checks if check)


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Run the matrix products of a block in `dtype`."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)
