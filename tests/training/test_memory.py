"""The allocator's settings and the peak, each in a process of its own."""

import sys
from pathlib import Path
from typing import Literal

import pytest
import torch

from mlm_dist.config import Config, ModelConfig, OptimConfig, TrainConfig
from mlm_dist.errors import UserError
from mlm_dist.model.encoder import Encoder
from mlm_dist.precision import autocast
from mlm_dist.training import memory
from mlm_dist.training.memory import check_memory, user_error_if_out_of_memory
from mlm_dist.training.optim import build_optimizers
from tests.conftest import start

CPU = torch.device("cpu")

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


@pytest.mark.parametrize(
    ("key", "value"),
    [("embedding_dim", 2_000_000), ("blocks", 10**9), ("block_size", 10**12), ("vocab_size", 10**12)],
)
def test_a_model_that_no_machine_holds_is_refused_with_its_sizes(key: str, value: int) -> None:
    config = Config(model=ModelConfig(**{"vocab_size": 300} | {key: value}))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=rf"model.{key} {value}\b.* make the model smaller"):
        check_memory(config, CPU, 1)


def test_a_batch_that_no_machine_holds_is_refused_until_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "total_memory", lambda _: 10**10)
    model = ModelConfig(vocab_size=300)
    check_memory(Config(model=model), CPU, 1)
    with pytest.raises(UserError, match=r"train.batch_size 1000000 with train.micro_batch_size null puts 1000000 rows"):
        check_memory(Config(model=model, train=TrainConfig(batch_size=10**6)), CPU, 1)
    check_memory(Config(model=model, train=TrainConfig(batch_size=10**6, micro_batch_size=100)), CPU, 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_what_is_kept_for_the_backward_pass_is_no_less_than_the_bound(dtype: torch.dtype) -> None:
    model = ModelConfig(vocab_size=300, block_size=64, embedding_dim=64, heads=4, blocks=6)
    encoder, tokens = Encoder(model), torch.zeros(8, 64, dtype=torch.long)
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor  # which also keeps another from the same place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast(CPU, dtype):
        encoder.encode(tokens, tokens[:, :10])
    for weight in encoder.parameters():
        kept.pop(weight.untyped_storage().data_ptr(), None)
    size = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert size / 4 < memory.bytes_of_activations(Config(model=model), 8) <= size


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("tied", [True, False])
def test_weights_gradients_and_optimizer_take_what_is_counted(name: Literal["adamw", "muon"], tied: bool) -> None:
    config = Config(
        model=ModelConfig(300, block_size=64, embedding_dim=64, heads=4, blocks=3, tie_embeddings=tied),
        optim=OptimConfig(name=name),
    )
    encoder = Encoder(config.model)
    optimizers = build_optimizers(encoder, config.optim)
    encoder(torch.zeros(1, 5, dtype=torch.long)).sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    states = [value for optimizer in optimizers for state in optimizer.state.values() for value in state.values()]
    tensors = [*encoder.parameters(), *(weight.grad for weight in encoder.parameters()), *states]
    size = sum(tensor.nbytes for tensor in tensors if tensor is not None and tensor.ndim)
    assert memory.bytes_of_parameters(config) == size


def test_the_limit_of_a_control_group_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "GROUP_LIMIT", tmp_path / "memory.max")
    whole = memory.total_memory(CPU)
    for content, expected in (("max\n", whole), (f"{10**6}\n", 10**6)):
        (tmp_path / "memory.max").write_text(content)
        assert memory.total_memory(CPU) == expected


def test_an_allocator_that_has_no_memory_is_one_line() -> None:
    for shape in ((2**60,), (2**40, 2**20)):
        with pytest.raises(UserError, match="out of memory"), user_error_if_out_of_memory():
            torch.empty(shape)
    with pytest.raises(RuntimeError, match="must match"), user_error_if_out_of_memory():
        torch.empty(3) + torch.empty(4)
