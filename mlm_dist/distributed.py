"""The processes of a run: rank, world size and device of this one, and the collectives between all of them.

The same code runs in a single process without torchrun, where every collective is the identity.
"""

import functools
import itertools
import math
import os
import pickle
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from mlm_dist.errors import RunError, UserError
from mlm_dist.output import print_error

T = TypeVar("T")

CHUNK_BYTES = 1 << 20  # of a gathered object: TCPStore accepts values up to 8 MiB
LAG = 2  # calls of `any_so_far` until an answer is there
POLL_SECONDS = 0.1
SHORTEST_PAUSE = 0.001
HEARTBEAT_SECONDS = 1.0
RESPONSE_SECONDS = 3.0
RENDEZVOUS_TIMEOUT = timedelta(minutes=10)

JOINED = itertools.count()  # groups that this process has joined; each has its own keys in the store


class CollectiveError(RuntimeError):
    """A collective failed, most often because a rank is missing."""


class Processes:
    """All processes of the run, seen from this one.

    Joins the others as torchrun's environment variables describe them.

    Args:
        device: the kind of device to compute on.
        timeout: timeout of collectives, in minutes.
        records: folder for NCCL's record of the last collectives of each rank, which it writes on a timeout.

    Attributes:
        rank: 0 to world_size - 1; rank 0 prints and writes.
        world_size: number of processes.
        device: the device of this process.

    Raises:
        UserError: the processes cannot connect; or, on all ranks: a rank has no such device, or devices differ.
    """

    def __init__(
        self, device: Literal["auto", "cpu", "cuda"], timeout: float = 10.0, records: str | None = None
    ) -> None:
        self.rank, self.world_size = 0, 1
        self._store: Store | None = None
        self._gathers = itertools.count()
        self._answers: deque[Callable[[], torch.Tensor]] | None = None
        self._last_heartbeat = -math.inf
        if "RANK" in os.environ:
            self._store, self.rank, self.world_size = join()
        with self.raise_on_all_ranks():
            self.device = choose_device(device, local_rank=int(os.environ.get("LOCAL_RANK", "0")))
        self.check_same("device", self.device.type)
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.set_device(self.device)
        if self._store is not None:
            if on_gpu:
                record_collectives(records)
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
                timeout=timedelta(minutes=timeout),
                store=self._store,
                rank=self.rank,
                world_size=self.world_size,
                device_id=self.device if on_gpu else None,
            )

    @property
    def is_distributed(self) -> bool:
        """Whether there is a process group: under torchrun, even with one process."""
        return self._store is not None

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    @property
    def is_local_rank_zero(self) -> bool:
        """Whether this is the first process on its machine."""
        return os.environ.get("LOCAL_RANK", "0") == "0"

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """All-reduce a tensor with a sum, in place."""
        return self.start_sum(tensor)()

    def start_sum(self, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Start to all-reduce a tensor with a sum, in place. The returned function waits for the sum.

        On a GPU, only its stream waits.
        """
        if self._store is None:
            return lambda: tensor
        work = dist.all_reduce(tensor, async_op=True)

        def wait() -> torch.Tensor:
            try:
                work.wait()
            except RuntimeError as error:  # such as "Application timeout caused pair closure"
                raise CollectiveError(str(error)) from error
            return tensor

        return wait

    def any(self, flag: bool) -> bool:
        """Whether a flag is true on at least one rank. This is a CPU collective, so no GPU waits for it."""
        return bool(self.sum_(torch.tensor(float(flag))).item())

    def any_so_far(self, flag: bool) -> bool:
        """Whether a flag was true on at least one rank, `LAG` calls ago; with one process, whether it is true now.

        All ranks get the same answer in the same call, and none of them waits for it: it arrives while they compute.
        Only the first call waits for its own answer, so that a flag from before the start counts before the first step.
        This is a CPU collective.
        """
        if self.world_size == 1:
            return flag
        if self._answers is None:
            self._answers = deque()
            return self.any(flag)
        self._answers.append(self.start_sum(torch.tensor(float(flag))))
        return len(self._answers) > LAG and bool(self._answers.popleft()().item())

    def all_gather(self, value: T) -> list[T]:
        """Gather a picklable value from every rank, in rank order. There is no timeout.

        It goes through the store: in a collective, the ranks that wait for a slow one would time out, and preparing a
        corpus may take hours. A second gloo group with a long timeout would not replace the store, which is there
        before any group and still works after a collective has failed. Rank 0 collects the values and publishes them
        together: it makes as many requests as there are ranks, and each other rank makes a constant number.
        """
        if self._store is None:
            return [value]
        key = f"gather {next(self._gathers)}"
        self._publish(f"{key}, rank {self.rank}", value)
        if self.is_rank_zero:
            self._publish(key, [self._wait_for(f"{key}, rank {rank}") for rank in range(self.world_size)])
        gathered: list[T] = self._wait_for(key)
        if self._store.add(f"{key}, readers", 1) == self.world_size:
            self._store.set(f"{key}, read", "")
        if self.is_rank_zero:  # it may host the store, and may exit next
            self._wait(f"{key}, read")
        return gathered

    def _publish(self, key: str, value: object) -> None:
        """Put a picklable value into the store."""
        assert self._store is not None
        content = pickle.dumps(value)
        chunks = [content[start : start + CHUNK_BYTES] for start in range(0, len(content), CHUNK_BYTES)]
        for index, chunk in enumerate(chunks):
            self._store.set(f"{key}, chunk {index}", chunk)  # type: ignore[arg-type] # it accepts bytes
        self._store.set(key, str(len(chunks)))

    def _wait_for(self, key: str) -> Any:
        """Get a value from the store as soon as it is there."""
        assert self._store is not None
        self._wait(key)
        chunks = int(self._store.get(key))
        return pickle.loads(b"".join(self._store.get(f"{key}, chunk {index}") for index in range(chunks)))

    def _wait(self, key: str) -> None:
        """Wait until a key is in the store. `Store.wait` would print a warning at each timeout."""
        assert self._store is not None
        pause = SHORTEST_PAUSE
        while not self._store.check([key]):
            time.sleep(pause)
            pause = min(2 * pause, POLL_SECONDS)

    def on_rank_zero(self, work: Callable[[], T]) -> T:
        """Call a function on rank 0 and return its result on all ranks.

        Raises:
            UserError: on all ranks, if the function raises it.
        """
        result: T | None = None
        with self.raise_on_all_ranks():
            if self.is_rank_zero:
                result = work()
        return self.all_gather(result)[0]  # type: ignore[return-value] # rank 0 has it

    @contextmanager
    def raise_on_all_ranks(self) -> Iterator[None]:
        """Raise a `UserError` of the block on all ranks, if any rank raises one.

        Any other exception is a bug. The rank that raised it raises it again, and the others raise a `UserError`.
        """
        raised: tuple[type[UserError], str] | None = None
        bug: Exception | None = None
        try:
            yield
        except UserError as error:
            raised = type(error), str(error)
        except Exception as error:  # the other ranks must not wait for this one
            raised, bug = (UserError, f"{type(error).__name__}: {error}"), error
        if raised and self.rank:
            raised = raised[0], f"{raised[1]} (rank {self.rank}, on {socket.gethostname()})"
        errors = self.all_gather(raised)
        if bug:
            raise bug
        if first := next(filter(None, errors), None):
            kind, message = first
            raise kind(message)

    def check_same(self, key: str, value: str) -> None:
        """Raise `UserError` on all ranks if the ranks chose different values for a key that the config leaves open."""
        if len(chosen := set(self.all_gather(value))) > 1:
            raise UserError(
                f"{key}: the machines of this run choose {' and '.join(sorted(chosen))}; set it in the config"
            )

    def heartbeat(self, step: int) -> None:
        """Publish the step of this rank, at most once per second."""
        now = time.monotonic()
        if self._store is not None and now - self._last_heartbeat > HEARTBEAT_SECONDS:
            self._store.set(f"step of {self.rank}", str(step))
            self._last_heartbeat = now

    @contextmanager
    def report_missing_ranks(self, advice: str) -> Iterator[None]:
        """If a collective in the block fails, report the missing ranks and exit.

        gloo's own error is about sockets. NCCL's watchdog ends the process itself and leaves a record of its
        collectives.

        Args:
            advice: what the user can do, for the end of the message.
        """
        try:
            yield
        except RuntimeError as error:
            is_known = isinstance(error, CollectiveError | dist.DistError) or "gloo" in str(error)  # DDP's name gloo
            if self._store is None or not is_known:
                raise
            present, missing = self.find_missing_ranks()
            if self.rank == min(present):
                reason = "; ".join(missing) or f"a collective failed: {error}"
                print_error(f"error: {reason}: {advice}")
            os._exit(RunError.exit_code)

    def find_missing_ranks(self) -> tuple[list[int], list[str]]:
        """The ranks that respond, and one sentence for each that does not, with its last published step, if any.

        `monitored_barrier` names missing ranks too, but not their steps, and only on rank 0, which may be missing.
        """
        store, present, missing = self._store, [self.rank], []
        assert store is not None

        def ask() -> None:
            with suppress(dist.DistError):
                store.set(f"rank {self.rank} is here", "")
                others = [rank for rank in range(self.world_size) if rank != self.rank]
                deadline = time.monotonic() + RESPONSE_SECONDS
                while others and time.monotonic() < deadline:
                    time.sleep(POLL_SECONDS)
                    present.extend(rank for rank in others if store.check([f"rank {rank} is here"]))
                    others = [rank for rank in others if rank not in present]
                for rank in others:
                    key = f"step of {rank}"
                    last = f"; it was last seen at step {store.get(key).decode()}" if store.check([key]) else ""
                    missing.append(f"rank {rank} does not respond{last}")
                finished.set()

        # If the process that hosts the store is gone, a call to the store fails, or may never return.
        finished = threading.Event()
        threading.Thread(target=ask, daemon=True).start()
        if not finished.wait(2 * RESPONSE_SECONDS):
            missing.append("the process that hosts the rendezvous, rank 0 or its torchrun, does not respond")
        return present, missing

    def close(self) -> None:
        """Destroy the process group, if there is one; this process may then join another. All ranks call it.

        Processes that used gloo under DDP abort now and then in Python's own finalization ("terminate called without an
        active exception"), even after this, and torchrun takes that for a failure. So verbs end through `run_verb`,
        which skips the finalization.
        """
        while self._answers:
            self._answers.popleft()()
        if self._store is not None:
            dist.destroy_process_group()


def join() -> tuple[Store, int, int]:
    """Connect to the other processes at MASTER_ADDR:MASTER_PORT; return their store, the rank and the world size.

    A store that torchrun hosts outlives an attempt under `--max-restarts`, with the keys and addresses of dead
    processes (pytorch#135712), so each attempt has a prefix of its own. This works on one machine; on several machines,
    torchrun's attempt counts differ. A process that trains and then evaluates joins twice in the same store, each time
    with another prefix.

    Raises:
        UserError: the processes cannot connect, or could not after a restart.
    """
    hosted_by_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    restarts = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"
    if hosted_by_torchrun and restarts and os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
        raise UserError(
            "torchrun --max-restarts on several machines needs TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in the environment "
            "of each torchrun (pytorch#135712)"
        )
    try:
        store, rank, world_size = connect()
    except (dist.DistError, ValueError) as error:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        reason = "the port is in use; choose another" if "EADDRINUSE" in str(error) else str(error).splitlines()[0]
        raise UserError(f"the processes cannot connect at {address}: {reason}") from error
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if hosted_by_torchrun else "0"
    return PrefixStore(f"attempt {attempt}, group {next(JOINED)}", store), rank, world_size


def record_collectives(folder: str | None) -> None:
    """Let NCCL record the last collectives of each rank, and write them on a timeout to FOLDER/nccl-rank-N."""
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    if folder:  # the default is a file in /tmp of each machine
        os.environ.setdefault("TORCH_FR_DUMP_TEMP_FILE", str(Path(folder).resolve() / "nccl-rank-"))


def maybe_no_sync(model: torch.nn.Module, is_last: bool) -> AbstractContextManager[None]:
    """Accumulate gradients locally, and all-reduce them only in the last micro-batch of a step."""
    if isinstance(model, DistributedDataParallel) and not is_last:
        return model.no_sync()
    return nullcontext()


@functools.cache
def connect() -> tuple[Store, int, int]:
    """The store at MASTER_ADDR:MASTER_PORT, the rank and the world size.

    The connection stays open until the process ends, because other ranks may still be reading from a store on rank 0.

    Raises:
        DistError, ValueError: the processes cannot connect.
    """
    connected: tuple[Store, int, int] = next(rendezvous("env://", timeout=RENDEZVOUS_TIMEOUT))
    return connected


def choose_device(device: Literal["auto", "cpu", "cuda"], local_rank: int = 0) -> torch.device:
    """Choose the device of the process with this local rank.

    With `srun --gpus-per-task=1`, each process sees its own GPU only, as device 0.

    Raises:
        UserError: `device` is `cuda` and there is no GPU, or there are fewer GPUs than processes.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cpu" or (device == "auto" and gpus == 0):
        return torch.device("cpu")
    if gpus == 0:
        raise UserError("device: cuda, but torch finds no CUDA device here: use device: cpu or auto")
    if gpus == 1 and "SLURM_GPUS_PER_TASK" in os.environ:
        local_rank = 0
    if local_rank >= gpus:
        raise UserError(f"there is no GPU for local rank {local_rank}, only {gpus} in all: start one process per GPU")
    return torch.device("cuda", local_rank)
