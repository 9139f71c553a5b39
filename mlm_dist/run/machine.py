"""The machine that a run was trained on, or a benchmark was measured on."""

import platform
import time
from pathlib import Path
from typing import Any

import torch

from mlm_dist.data.encoding import usable_cores
from mlm_dist.files import read_json


def describe_machine(device: torch.device, dtype: torch.dtype, processes: int = 1) -> dict[str, str | int]:
    """Describe what determines the speed and the rounding errors of this process.

    The description contains no host names and no paths, so it can be published.
    """
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else processor(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "precision": str(dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "python": platform.python_version(),
        **(describe_cuda() if on_gpu else {}),
        "date": time.strftime("%Y-%m-%d"),
    }


def describe_cuda() -> dict[str, str | int]:
    """The number of GPUs of this machine, and the versions of CUDA, cuDNN and NCCL."""
    return {
        "gpus": torch.cuda.device_count(),
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),  # type: ignore[no-untyped-call]
    }


def processor() -> str:
    """The name of the processor, if the system provides it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def read_machine(file: Path) -> dict[str, Any]:
    """The content of a machine.json; empty if it does not exist or is damaged."""
    try:
        machine = read_json(file)
    except (OSError, ValueError):
        return {}
    return machine if isinstance(machine, dict) else {}
