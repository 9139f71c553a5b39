"""What a run was trained on, or a benchmark measured on."""

import platform
import time
from pathlib import Path
from typing import Any

import torch

from mlm_dist.data.preparation import usable_cores
from mlm_dist.files import read_json


def describe_machine(device: torch.device, dtype: torch.dtype, processes: int = 1) -> dict[str, str | int]:
    """Describe the machine of this process, as far as it matters to how fast and in what arithmetic it trains.

    Neither names nor paths are in it, so that it can be shown to anyone.
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
        "date": time.strftime("%Y-%m-%d"),
    }


def processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def read_machine(file: Path) -> dict[str, Any]:
    """What a run's machine.json says; empty if it was not recorded."""
    try:
        machine = read_json(file)
    except (OSError, ValueError):
        return {}
    return machine if isinstance(machine, dict) else {}
