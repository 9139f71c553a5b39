"""The processes of a run: who they are, which device each has, and how they act as one.

The same code serves one process without torchrun, where every exchange is the identity.
"""

import functools
import itertools
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from mlm_dist.errors import RunError, UserError, say

LONGEST_PART = 1 << 20  # of a note, in characters: the store takes 8 MiB at a time
SECONDS_BETWEEN_LOOKS = 0.1
SECONDS_BETWEEN_PULSES = 1.0
SECONDS_FOR_ROLL_CALL = 3.0
MEETING_TIMEOUT = timedelta(minutes=10)

MEETINGS = itertools.count()  # of this process; each has notes of its own


class Processes:
    """The processes of the run, and the place of this one among them.

    Joins the others as torchrun's environment variables describe them.

    Args:
        device: the kind of device to compute on.
        hang_timeout: minutes that collectives wait for a process that does not answer.

    Attributes:
        rank: 0 to world_size - 1; rank 0 prints and writes.
        world_size: number of processes.
        device: what this process computes on.

    Raises:
        UserError: on every rank, if the processes cannot meet or the device is not there for one of them.
    """

    def __init__(self, device: Literal["auto", "cpu", "cuda"], hang_timeout: float = 10.0) -> None:
        self.rank, self.world_size = 0, 1
        self._store: Store | None = None  # where processes leave each other notes
        self._notes = itertools.count()
        self._last_pulse = -math.inf
        if "RANK" in os.environ:
            self._store, self.rank, self.world_size = meet()
        with self.together():
            self.device = choose_device(device, local_rank=int(os.environ.get("LOCAL_RANK", "0")))
        self.check_same("device", self.device.type)
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.set_device(self.device)
        if self._store is not None:
            if on_gpu:  # NCCL then writes down which collectives a rank was in when one timed out
                os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")
                os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
                timeout=timedelta(minutes=hang_timeout),
                store=self._store,
                rank=self.rank,
                world_size=self.world_size,
                device_id=self.device if on_gpu else None,
            )

    @property
    def exchanges(self) -> bool:
        """Whether there is a process group: under torchrun, even of one process."""
        return self._store is not None

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    @property
    def is_first_here(self) -> bool:
        """Whether this is the first process of its machine."""
        return os.environ.get("LOCAL_RANK", "0") == "0"

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Add up a tensor over all ranks, in place."""
        if self._store is not None:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether a flag is up on at least one rank. It is exchanged between CPUs and makes no GPU wait."""
        return bool(self.sum_(torch.tensor(float(flag))).item())

    @contextmanager
    def together(self) -> Iterator[None]:
        """Fail on all ranks if one fails: a `UserError` inside the block on any of them is raised on every one."""
        complaint, kind, fault = "", UserError, None
        try:
            yield
        except UserError as error:
            complaint, kind = str(error), type(error)
        except Exception as error:  # a fault of ours, which the others must not wait for either
            complaint, fault = f"{type(error).__name__}: {error}", error
        if complaint and self.rank:
            complaint += f" (rank {self.rank}, on {socket.gethostname()})"
        notes = self.exchange(f"{kind.__name__}\n{complaint}" if complaint else "")
        if fault:
            raise fault
        if first := next(filter(None, notes), None):
            name, _, complaint = first.partition("\n")
            raise {kind.__name__: kind for kind in (UserError, RunError)}[name](complaint)

    def first_alone(self, work: Callable[[], str]) -> str:
        """Have rank 0 do some work and give every rank its result.

        Raises:
            UserError: on every rank, if the work raised it.
        """
        result = ""
        with self.together():
            if self.is_first:
                result = work()
        return self.exchange(result)[0]

    def exchange(self, note: str) -> list[str]:
        """The notes of all ranks, in order, however long it takes until all have been left.

        They are left in the store. In a collective, those who wait for a slow one would time out.
        """
        if self._store is None:
            return [note]
        number = next(self._notes)
        parts = [note[start : start + LONGEST_PART] for start in range(0, len(note), LONGEST_PART)]
        for place, part in enumerate(parts):
            self._store.set(f"part {place} of note {number} of {self.rank}", part)
        self._store.set(f"note {number} of {self.rank}", str(len(parts)))
        keys = [f"note {number} of {rank}" for rank in range(self.world_size)]
        while not self._store.check(keys):
            time.sleep(SECONDS_BETWEEN_LOOKS)
        notes = [
            "".join(self._store.get(f"part {place} of {key}").decode() for place in range(int(self._store.get(key))))
            for key in keys
        ]
        readers = self._store.add(f"readers of {number}", 1)
        while self.is_first and readers < self.world_size:  # rank 0 may be the host of the store, and may leave now
            time.sleep(SECONDS_BETWEEN_LOOKS)
            readers = self._store.add(f"readers of {number}", 0)
        return notes

    def check_same(self, key: str, value: str) -> None:
        """Raise `UserError` on every rank if the ranks have chosen differently where the config left it to them."""
        if len(chosen := set(self.exchange(value))) > 1:
            raise UserError(f"{key}: the machines of this run come to {' and '.join(sorted(chosen))}; set it for all")

    def pulse(self, step: int) -> None:
        """Let the others know, once a second, which step this rank is at."""
        now = time.monotonic()
        if self._store is not None and now - self._last_pulse > SECONDS_BETWEEN_PULSES:
            self._store.set(f"step of {self.rank}", str(step))
            self._last_pulse = now

    @contextmanager
    def naming_the_lost(self) -> Iterator[None]:
        """End the run with the names of those who are missing if an exchange inside the block breaks off.

        gloo's own error is of sockets. NCCL's watchdog ends the process itself, and leaves a record of its collectives.
        """
        try:
            yield
        except RuntimeError as error:
            if self._store is None or not ("gloo" in str(error) or isinstance(error, dist.DistError)):
                raise
            present, missing = self.roll_call()
            if self.rank == min(present):
                reason = "; ".join(missing) or f"an exchange between the processes failed: {error}"
                say(f"error: {reason}. The same command goes on from the last checkpoint")
            os._exit(RunError.exit_code)

    def roll_call(self) -> tuple[list[int], list[str]]:
        """Ask which ranks are still there; of each that is not, say how far it had come."""
        store, present, missing = self._store, [self.rank], []
        assert store is not None

        def call() -> None:
            with suppress(dist.DistError):
                store.set(f"rank {self.rank} is here", "")
                others = [rank for rank in range(self.world_size) if rank != self.rank]
                deadline = time.monotonic() + SECONDS_FOR_ROLL_CALL
                while others and time.monotonic() < deadline:
                    time.sleep(SECONDS_BETWEEN_LOOKS)
                    present.extend(rank for rank in others if store.check([f"rank {rank} is here"]))
                    others = [rank for rank in others if rank not in present]
                for rank in others:
                    key = f"step of {rank}"
                    step = store.get(key).decode() if store.check([key]) else "its start"
                    missing.append(f"rank {rank} does not answer; it was last seen at step {step}")
                finished.set()

        # If the rank that hosts the store is the lost one, a call to it fails, or may never return.
        finished = threading.Event()
        threading.Thread(target=call, daemon=True).start()
        if not finished.wait(2 * SECONDS_FOR_ROLL_CALL):
            missing.append("the process where the others meet, rank 0 or its torchrun, does not answer")
        return present, missing

    def leave(self) -> None:
        """Destroy the process group, if there is one; this process may then join another. All ranks call it.

        Processes that used gloo under DDP abort now and then while Python takes them down ("terminate called without
        an active exception"), even after this, and torchrun takes that for a failure. So the verbs end by `run_verb`,
        which leaves without being taken down.
        """
        if self._store is not None:
            dist.destroy_process_group()


def meet() -> tuple[Store, int, int]:
    """Meet the other processes at MASTER_ADDR:MASTER_PORT; return the store there, the rank and the world size.

    A store that torchrun keeps itself outlives an attempt under `--max-restarts`, with the notes and addresses of
    processes that are dead (pytorch#135712), so each attempt has a part of its own. That works on one machine; between
    several, torchrun's counts of attempts differ. A process that trains and then evaluates meets the others twice, in
    the same store, and the second meeting too has a part of its own.

    Raises:
        UserError: they cannot meet, or could not meet again.
    """
    is_torchruns = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    restarts = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"
    if is_torchruns and restarts and os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
        raise UserError(
            "torchrun --max-restarts on several machines needs TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in the environment "
            "of each torchrun (pytorch#135712)"
        )
    try:
        store, rank, world_size = join_store()
    except (dist.DistError, ValueError) as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        reason = "the port is taken; choose another" if "EADDRINUSE" in str(error) else str(error).splitlines()[0]
        raise UserError(f"the processes cannot meet at {place}: {reason}") from error
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if is_torchruns else "0"
    return PrefixStore(f"attempt {attempt}, meeting {next(MEETINGS)}", store), rank, world_size


@functools.cache
def join_store() -> tuple[Store, int, int]:
    """The store at MASTER_ADDR:MASTER_PORT, the rank and the world size.

    It is joined once and kept until the process ends, for the others may still be reading what rank 0 hosts.
    """
    joined: tuple[Store, int, int] = next(rendezvous("env://", timeout=MEETING_TIMEOUT))
    return joined


def choose_device(device: Literal["auto", "cpu", "cuda"], local_rank: int = 0) -> torch.device:
    """Pick the device of the process that is the `local_rank`-th on its machine.

    Raises:
        UserError: a GPU is asked for and there is none for this process.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cpu" or (device == "auto" and gpus == 0):
        return torch.device("cpu")
    if gpus == 0:
        raise UserError("device: cuda, but torch finds no CUDA device here: use device: cpu or auto")
    if local_rank >= gpus:
        raise UserError(f"{local_rank + 1} or more processes were started on a machine with {gpus} GPUs: start {gpus}")
    return torch.device("cuda", local_rank)
