from pathlib import Path

import pytest
import torch

from mlm_dist import precision
from mlm_dist.distributed import choose_device
from mlm_dist.errors import UserError
from mlm_dist.precision import autocast, choose_dtype

CPU = torch.device("cpu")


def test_every_precision_has_its_dtype() -> None:
    assert choose_dtype("bf16", CPU) == torch.bfloat16
    assert choose_dtype("fp16", CPU) == torch.float16
    assert choose_dtype("fp32", CPU) == torch.float32


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_is_bf16_only_if_the_processor_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, has_bf16: bool, expected: torch.dtype
) -> None:
    # A test machine has one processor, so the answer is patched.
    monkeypatch.setattr(precision, "computes_in_bf16", lambda device: has_bf16)
    assert choose_dtype("auto", CPU) == expected


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs Linux")
def test_a_processor_computes_in_bf16_if_it_has_the_instructions() -> None:
    words = set(Path("/proc/cpuinfo").read_text().split())
    if "flags" not in words:
        pytest.skip("this processor lists no flags")
    assert precision.computes_in_bf16(CPU) == bool({"avx512_bf16", "amx_tile"} & words)


def test_matrix_products_run_in_the_chosen_precision() -> None:
    layer, x = torch.nn.Linear(4, 4), torch.randn(2, 4)
    for dtype in (torch.bfloat16, torch.float32):
        with autocast(CPU, dtype):
            assert layer(x).dtype == dtype


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_gpu_is_refused() -> None:
    assert choose_device("auto") == CPU
    with pytest.raises(UserError, match=r"device: cuda.*no CUDA"):
        choose_device("cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_auto_selects_the_gpu_and_its_precision() -> None:
    device = choose_device("auto")
    assert device == torch.device("cuda", 0)
    assert choose_dtype("auto", device) in (torch.bfloat16, torch.float16)
    with pytest.raises(UserError, match="start"):
        choose_device("auto", local_rank=torch.cuda.device_count())
