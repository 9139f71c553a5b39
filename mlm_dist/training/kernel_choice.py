"""Which Triton kernels a run uses: those that are right on all of its GPUs."""

import torch

from mlm_dist.config import ModelConfig
from mlm_dist.distributed import Processes
from mlm_dist.model import kernels
from mlm_dist.model.kernel_check import find_failures
from mlm_dist.model.kernels import Kernel
from mlm_dist.output import warn


def choose_kernels(config: ModelConfig, slots: int, processes: Processes, dtype: torch.dtype) -> None:
    """Check the kernels on each GPU, and switch off those that fail on any. All ranks call this.

    Arguments are as in `find_failures`.
    """
    if kernels.can_run(processes.device):
        switch_off_on_all_ranks(find_failures(config, slots, processes.device, dtype), processes)


def switch_off_on_all_ranks(failures: dict[Kernel, str], processes: Processes) -> None:
    """Switch off the kernels that fail on any rank, with one warning. All ranks call this.

    Args:
        failures: why kernels fail on this rank.
        processes: all ranks.
    """
    reasons: dict[Kernel, str] = {}
    for rank, failed in enumerate(processes.all_gather(failures)):
        for kernel, reason in failed.items():
            reasons.setdefault(kernel, f"{reason} (rank {rank})" if rank else reason)
    kernels.switch_off(reasons)
    if reasons:
        described = [
            f"{', '.join(kernel for kernel, why in reasons.items() if why == reason)}: {reason}"
            for reason in dict.fromkeys(reasons.values())
        ]
        warn(f"Triton kernels that fail here are switched off, and steps take longer: {'; '.join(described)}")
