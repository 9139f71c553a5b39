"""The allocator's settings and the peak, each in a process of its own."""

import sys

import pytest

from tests.conftest import start

PEAK = "from mlm_dist.training.memory import keep_freed_memory, peak_memory; import torch; d = torch.device('cpu'); "


def printed(code: str) -> list[int]:
    result = start([sys.executable, "-c", PEAK + code])
    assert result.returncode == 0, result.stderr
    return [int(word) for word in result.stdout.split()]


def test_the_peak_is_the_most_that_was_in_use() -> None:
    before, during, after = printed(
        "print(peak_memory(d)); x = torch.ones(50 << 20); print(peak_memory(d)); del x; print(peak_memory(d))"
    )
    assert 195e6 < during - before < 260e6  # 210 MB in fp32
    assert after == pytest.approx(during, abs=10e6)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_used_again_without_asking_the_system() -> None:
    loop = "for _ in range(20): torch.ones(10 << 20)"
    count = "import resource; faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt; "
    measure = f"exec('{loop}'); before = faults(); exec('{loop}'); print(faults() - before)"
    (usual,) = printed(count + measure)
    (kept,) = printed(count + "keep_freed_memory(); " + measure)
    assert usual > 1000  # a page each 4 kB, or larger ones where the system gives them
    assert kept < usual / 50
