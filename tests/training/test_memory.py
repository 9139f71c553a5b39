"""The allocator's settings and peak memory, each in a new process, and the checks of available memory."""

import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from mlm_dist.config import Config, ModelConfig, OptimConfig, TrainConfig
from mlm_dist.errors import UserError
from mlm_dist.model.encoder import Encoder
from mlm_dist.precision import autocast
from mlm_dist.training import memory
from mlm_dist.training.average import ParameterAverage
from mlm_dist.training.memory import check_memory, user_error_if_out_of_memory
from mlm_dist.training.optim import build_optimizers
from tests.conftest import start

CPU = torch.device("cpu")

PEAK = "from mlm_dist.training.memory import keep_freed_memory, peak_memory; import torch; d = torch.device('cpu'); "


def printed(code: str) -> list[int]:
    result = start([sys.executable, "-c", PEAK + code])
    assert result.returncode == 0, result.stderr
    return [int(word) for word in result.stdout.split()]


def test_peak_memory_includes_freed_memory() -> None:
    before, during, after = printed(
        "print(peak_memory(d)); x = torch.ones(50 << 20); print(peak_memory(d)); del x; print(peak_memory(d))"
    )
    assert 195e6 < during - before < 260e6  # 210 MB in fp32
    assert after == pytest.approx(during, abs=10e6)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_reused_without_page_faults() -> None:
    loop = "for _ in range(20): torch.ones(10 << 20)"
    count = "import resource; faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt; "
    measure = f"exec('{loop}'); before = faults(); exec('{loop}'); print(faults() - before)"
    (default,) = printed(count + measure)
    (kept,) = printed(count + "keep_freed_memory(); " + measure)
    assert default > 1000  # one page fault per 4 kB, or fewer with huge pages
    assert kept < default / 50


@pytest.mark.parametrize(
    ("key", "value"),
    [("embedding_dim", 2_000_000), ("blocks", 10**9), ("block_size", 10**12), ("vocab_size", 10**12)],
)
def test_a_model_larger_than_the_memory_is_refused_with_its_sizes(key: str, value: int) -> None:
    sizes: dict[str, Any] = {"vocab_size": 300} | {key: value}
    with pytest.raises(UserError, match=rf"model.{key} {value}\b.* make the model smaller"):
        check_memory(Config(model=ModelConfig(**sizes)), CPU, 1)


def test_a_batch_larger_than_the_memory_is_refused_unless_micro_batches_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "total_memory", lambda _: 10**10)
    model = ModelConfig(vocab_size=300)
    check_memory(Config(model=model), CPU, 1)
    with pytest.raises(UserError, match=r"train.batch_size 1000000 with train.micro_batch_size null puts 1000000 rows"):
        check_memory(Config(model=model, train=TrainConfig(batch_size=10**6)), CPU, 1)
    check_memory(Config(model=model, train=TrainConfig(batch_size=10**6, micro_batch_size=100)), CPU, 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_activations_kept_for_the_backward_pass_are_at_least_the_lower_bound(dtype: torch.dtype) -> None:
    model = ModelConfig(vocab_size=300, block_size=64, embedding_dim=64, heads=4, blocks=6)
    encoder, tokens = Encoder(model), torch.zeros(8, 64, dtype=torch.long)
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor  # a live tensor keeps its address in use
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast(CPU, dtype):
        encoder.encode(tokens, tokens[:, :10])
    for parameter in encoder.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    size = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert size / 4 < memory.bytes_of_activations(Config(model=model), 8) <= size


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize(("tied", "ema"), [(True, None), (False, None), (True, 0.9)])
def test_parameters_gradients_and_optimizer_state_have_the_computed_size(
    name: Literal["adamw", "muon"], tied: bool, ema: float | None
) -> None:
    config = Config(
        model=ModelConfig(300, block_size=64, embedding_dim=64, heads=4, blocks=3, tie_embeddings=tied),
        optim=OptimConfig(name=name, ema=ema),
    )
    encoder = Encoder(config.model)
    optimizers = build_optimizers(encoder, config.optim)
    encoder(torch.zeros(1, 5, dtype=torch.long)).sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    states = [value for optimizer in optimizers for state in optimizer.state.values() for value in state.values()]
    averages = ParameterAverage(encoder, ema).model.parameters() if ema else []
    tensors = [*encoder.parameters(), *(parameter.grad for parameter in encoder.parameters()), *states, *averages]
    size = sum(tensor.nbytes for tensor in tensors if tensor is not None and tensor.ndim)
    assert memory.bytes_of_parameters(config) == size


def test_the_memory_limit_of_a_cgroup_is_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "GROUP_LIMIT", tmp_path / "memory.max")
    unlimited = memory.total_memory(CPU)
    for content, expected in (("max\n", unlimited), (f"{10**6}\n", 10**6)):
        (tmp_path / "memory.max").write_text(content)
        assert memory.total_memory(CPU) == expected


def test_a_failed_allocation_is_a_user_error() -> None:
    for shape in ((2**60,), (2**40, 2**20)):
        with pytest.raises(UserError, match="out of memory"), user_error_if_out_of_memory():
            torch.empty(shape)
    with pytest.raises(RuntimeError, match="must match"), user_error_if_out_of_memory():
        torch.empty(3) + torch.empty(4)
