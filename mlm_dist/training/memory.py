"""Memory: the minimum that a run needs, the settings of the allocator, and the peak usage."""

import ctypes
import os
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from mlm_dist.config import Config
from mlm_dist.errors import UserError
from mlm_dist.files import format_size
from mlm_dist.model.registry import model_class

# From glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
LARGEST = 2**31 - 1

# The memory limit of the control group; inside a container, that of the container.
GROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")

FP32_BYTES = 4
BLOCK_BYTES = 20  # minimum that a block saves for the backward pass, per element of its input


def check_memory(config: Config, device: torch.device, world_size: int) -> None:
    """Raise `UserError` if this machine has less memory than the minimum that a run needs."""
    available = total_memory(device)
    where = "the GPU" if device.type == "cuda" else "this machine"
    processes = 1 if device.type == "cuda" else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # that share the memory
    model, needed = config.model, processes * bytes_of_parameters(config)
    count = model_class(model).count_parameters(model)
    if needed > available:
        raise UserError(
            f"model.vocab_size {model.vocab_size}, model.block_size {model.block_size}, model.embedding_dim "
            f"{model.embedding_dim} and model.blocks {model.blocks} make {count:,} parameters, which take "
            f"{format_size(needed)} in training, but {where} has {format_size(available)}: make the model smaller"
        )
    rows = config.micro_batch_size(world_size)
    needed += processes * bytes_of_activations(config, rows)
    if needed > available:
        raise UserError(
            f"train.batch_size {config.train.batch_size} with train.micro_batch_size "
            f"{config.train.micro_batch_size or 'null'} puts {rows} rows through the model at a time, which takes at "
            f"least {format_size(needed)}, but {where} has {format_size(available)}: set train.micro_batch_size, or "
            f"lower it"
        )


@contextmanager
def user_error_if_out_of_memory() -> Iterator[None]:
    """Raise an out-of-memory error of the block as a `UserError`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        raise UserError(
            "out of memory: lower train.micro_batch_size, or make the model smaller (model.embedding_dim, "
            "model.blocks, model.vocab_size, model.block_size)"
        ) from error


def bytes_of_parameters(config: Config) -> int:
    """Bytes of parameters, their average, gradients and optimizer state: AdamW has two moments, Muon has one.

    The second one of NorMuon, a number per row, is left out, and so is the copy of the matrices that cautious weight
    decay holds during an update.
    """
    model = model_class(config.model)
    count = model.count_parameters(config.model)
    with_one_moment = model.count_in_hidden_matrices(config.model) if config.optim.name != "adamw" else 0
    return FP32_BYTES * ((5 if config.optim.ema else 4) * count - with_one_moment)


def bytes_of_activations(config: Config, rows: int) -> int:
    """Minimum bytes of the activations of a micro-batch between forward and backward pass, in any precision.

    The last block, which runs at masked positions only, and the loss are left out.
    """
    model = config.model
    return rows * model.block_size * model.embedding_dim * (FP32_BYTES + BLOCK_BYTES * (model.blocks - 1))


def total_memory(device: torch.device) -> int:
    """Bytes of memory of the GPU, or of the machine within the limit of this process."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # no control groups, or no limit (`max`)
        available = min(available, int(GROUP_LIMIT.read_text(encoding="utf-8")))
    return available


def keep_freed_memory() -> None:
    """Make the C library keep freed memory for the next step instead of returning it to the system.

    By default, glibc maps every large tensor anew, and the system clears its pages, at every step
    (docs/performance.md). See mallopt(3). Without glibc this does nothing.
    """
    with suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, LARGEST)


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: of tensors on a GPU, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if peak := peak_memory_of("self"):  # Linux, whose getrusage(2) starts at the usage of the parent process
        return peak
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, see getrusage(2)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_memory_of(process: int | str) -> int:
    """Peak memory of a process of this machine, in bytes: its pid, or `self`. 0 where it is not known."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except OSError:  # not Linux, or the process has ended
        return 0
    return 1024 * sum(map(int, re.findall(r"VmHWM:\s+(\d+) kB", status)))
