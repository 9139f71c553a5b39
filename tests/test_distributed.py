import os
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._C._distributed_c10d import HashStore, Store

from mlm_dist.distributed import Processes, choose_device, join, record_collectives
from mlm_dist.errors import UserError
from tests.conftest import start

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


@pytest.mark.multiprocess
def test_three_ranks_exchange_results_errors_and_sums() -> None:
    result = start([*TORCHRUN, "--nproc_per_node=3", str(Path(__file__).with_name("meeting.py"))])
    assert result.returncode == 0, result.stderr
    expected = "; ".join(
        [
            "a result",
            "working idle idle",
            "the work is impossible",
            "my disk is missing on rank 1",
            "RunError",
            "a fault of ours",
            "note of 0 note of 1 note of 2",
            "long notes True",
            "precision: the machines of this run choose bf16 and fp32",
            "6",
            "True False",
            "True False False False True False",  # in the first call, and two calls after rank 2 gave its flag
        ]
    )
    assert sorted(result.stdout.splitlines()) == [f"rank {rank}: {expected}" for rank in range(3)]


def test_with_one_process_collectives_return_their_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    processes = Processes("cpu")
    assert (processes.rank, processes.world_size, processes.is_rank_zero) == (0, 1, True)
    assert processes.on_rank_zero(lambda: "result") == "result"
    assert torch.equal(processes.sum_(torch.tensor([1.0, 2.0])), torch.tensor([1.0, 2.0]))
    with pytest.raises(UserError, match="mine"), processes.raise_on_all_ranks():
        raise UserError("mine")


class TimedOut:
    """The work of an asynchronous collective, with the error that gloo gives it. It does not name gloo."""

    def wait(self) -> None:
        raise RuntimeError("Application timeout caused pair closure")


def fail_in_ddp(_: Processes) -> None:
    raise RuntimeError("gloo: connection closed")


def fail_in_a_sum(processes: Processes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.distributed.all_reduce", lambda *_, **__: TimedOut())
        processes.any_so_far(False)


@pytest.mark.slow
@pytest.mark.parametrize("fail", [fail_in_ddp, fail_in_a_sum])
def test_a_failed_collective_names_the_missing_ranks_and_gives_the_advice(
    fail: Callable[[Processes], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(os, "_exit", leave)
    processes = Processes("cpu")
    processes.world_size, processes._store = 3, HashStore()
    processes._store.set("rank 2 is here", "")
    with pytest.raises(SystemExit) as caught, processes.report_missing_ranks("run the command again"):
        fail(processes)
    assert caught.value.code == 1
    message = "mlm_dist: error: rank 1 does not respond: run the command again\n"
    assert capsys.readouterr().err == message


def test_restarts_on_several_machines_need_a_shared_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    with pytest.raises(UserError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        join()


class CountingStore:
    """A store for threads that counts the requests of each."""

    def __init__(self, store: Store, requests: Counter[str]) -> None:
        self.store = store
        self.requests = requests

    def __getattr__(self, name: str) -> Any:
        """The method of the store; each call is counted, but for those that wait."""
        if name != "check":
            self.requests[threading.current_thread().name] += 1
        return getattr(self.store, name)


@pytest.mark.parametrize("world_size", [2, 64, 256])
def test_a_gather_takes_one_request_per_rank_on_rank_0_and_a_constant_number_on_others(
    world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    requests: Counter[str] = Counter()
    store = HashStore()
    gathered: dict[int, list[str]] = {}

    def gather(rank: int) -> None:
        processes = Processes("cpu")
        processes.rank, processes.world_size = rank, world_size
        processes._store = CountingStore(store, requests)  # type: ignore[assignment]
        gathered[rank] = processes.all_gather(f"value {rank}")

    threads = [threading.Thread(target=gather, args=(rank,), name=str(rank)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(gathered[rank] == [f"value {rank}" for rank in range(world_size)] for rank in range(world_size))
    assert requests["0"] <= 2 * world_size + 8
    assert max(requests[str(rank)] for rank in range(1, world_size)) <= 6


def test_the_record_of_collectives_goes_into_the_run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_DUMP_ON_TIMEOUT", "TORCH_FR_DUMP_TEMP_FILE"):
        monkeypatch.setenv(name, "")  # restored after the test
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    record_collectives("runs/mine")
    assert os.environ["TORCH_FR_DUMP_TEMP_FILE"] == str(tmp_path / "runs/mine/nccl-rank-")
    record_collectives("runs/other")  # what the user has set stays
    assert os.environ["TORCH_FR_DUMP_TEMP_FILE"] == str(tmp_path / "runs/mine/nccl-rank-")


def test_a_slurm_task_with_a_gpu_of_its_own_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.delenv("SLURM_GPUS_PER_TASK", raising=False)
    with pytest.raises(UserError, match="no GPU for local rank 3"):
        choose_device("auto", local_rank=3)
    monkeypatch.setenv("SLURM_GPUS_PER_TASK", "1")
    assert choose_device("auto", local_rank=3) == torch.device("cuda", 0)
