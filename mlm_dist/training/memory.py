"""The memory of this process: what the allocator does with what was freed, and how much was in use at most."""

import ctypes
import re
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

# From glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
LARGEST = 2**31 - 1


def keep_freed_memory() -> None:
    """Have the C library keep freed memory for the next step instead of giving it back to the system.

    glibc asks the system for every large tensor anew, which then clears its pages as they are touched, again at each
    step (docs/performance.md). See mallopt(3). Elsewhere than on glibc this does nothing.
    """
    with suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, LARGEST)


def peak_memory(device: torch.device) -> int:
    """The most bytes in use so far: on a GPU of tensors, on a CPU of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError):  # Linux; its getrusage(2) begins with what the parent process had in use
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, see getrusage(2)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
