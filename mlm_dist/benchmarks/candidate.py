"""A candidate: this package or a peer. `serve` runs it in its own process and executes the commands of the benchmark.

Each candidate has its own process, because their memory allocators are configured differently, and because peak memory
is measured per process.
"""

import itertools
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

from mlm_dist.benchmarks.parts import synchronize
from mlm_dist.benchmarks.peers import ENCODERS, mask_with_global_generator
from mlm_dist.config import Config
from mlm_dist.config_reading import read_config
from mlm_dist.data.corpus import Corpus
from mlm_dist.data.mixture import join_corpora
from mlm_dist.data.preparation import find_or_prepare_all
from mlm_dist.data.rows import choose_rows
from mlm_dist.distributed import Processes
from mlm_dist.errors import UserError
from mlm_dist.plots.curves import save_curves
from mlm_dist.precision import autocast, choose_dtype
from mlm_dist.run.background_saver import BackgroundSaver
from mlm_dist.run.run_dir import RunDir
from mlm_dist.training.memory import keep_freed_memory, peak_memory
from mlm_dist.training.stopping import StopRequest
from mlm_dist.training.trainer import Trainer

BATCHES_TO_READ = 100


class Candidate(Protocol):
    """A training implementation that the benchmark measures.

    Attributes:
        device: the device of its steps.
    """

    device: torch.device

    def step(self) -> None:
        """Run one optimizer step, including reading and masking its rows."""


class MlmDist:
    """The trainer of this package."""

    def __init__(self, config: Config, corpora: Sequence[Corpus], folder: Path) -> None:
        keep_freed_memory()
        self.processes = Processes(config.device, config.train.hang_timeout)
        self.run_dir = RunDir(folder)
        self.trainer = Trainer(config, corpora, self.processes, self.run_dir, StopRequest())
        self.trainer.eager_step.compile(config.train.max_iters)
        self.saver = BackgroundSaver(self.run_dir.checkpoints, keep=1)
        self.saver.folder.mkdir(parents=True, exist_ok=True)
        self.device = self.processes.device

    def step(self) -> None:
        """Run one step of the training loop."""
        self.trainer.is_stopping()
        self.trainer.train_step()

    def step_parts(self) -> dict[str, float]:
        """Run one step, operation by operation and not compiled, and time its parts, in seconds.

        On a GPU, synchronizing after each part adds a little, and `step` is faster than the sum: it replays a graph.
        """
        forward: list[float] = []
        step = self.trainer.eager_step
        lr = step.next_lr
        compiled, step.loss._compiled_call_impl = step.loss._compiled_call_impl, None  # the hooks cannot be compiled
        before = step.model.register_forward_pre_hook(lambda *_: forward.append(-self.now()))
        after = step.model.register_forward_hook(lambda *_: forward.append(self.now()))
        times = [self.now()]
        batch = step.next_batch()
        times.append(self.now())
        step.forward_backward(batch)
        times.append(self.now())
        step.update(lr)
        times.append(self.now())
        before.remove()
        after.remove()
        step.loss._compiled_call_impl = compiled
        reading, gradients, update = (end - start for start, end in itertools.pairwise(times))
        parts = {"input": reading, "forward": sum(forward), "backward": gradients - sum(forward), "optimizer": update}
        return parts | {"all-reduce": self.all_reduce()}

    def all_reduce(self) -> float:
        """Seconds that an all-reduce of all gradients takes by itself; 0 without a process group."""
        if not self.processes.is_distributed:
            return 0.0
        gradients = torch.cat([parameter.detach().flatten() for parameter in self.trainer.state.encoder.parameters()])
        self.processes.any(False)  # a barrier, so that all ranks start at the same time
        start = self.now()
        dist.all_reduce(gradients)
        return self.now() - start

    def now(self) -> float:
        """The time, in seconds, after all work queued on the device is done."""
        synchronize(self.device)
        return time.perf_counter()

    def read(self) -> float:
        """Mean time to read and mask a batch, in seconds."""
        start = self.now()
        for _ in range(BATCHES_TO_READ):
            self.trainer.eager_step.next_batch()
        return (self.now() - start) / BATCHES_TO_READ

    def save(self) -> float:
        """Seconds for which training is blocked when it saves a checkpoint in the background (rank 0)."""
        self.saver.wait()
        start = self.now()
        if self.processes.is_rank_zero:
            self.saver.save(self.trainer.state.step, self.trainer.state.state_dict(), {})
        return self.now() - start

    def evaluate(self) -> float:
        """Seconds that an evaluation of the run takes."""
        start = self.now()
        self.trainer.validator.evaluate(self.trainer.state.encoder, self.trainer.is_stopping)
        return self.now() - start

    def plot(self) -> float:
        """Seconds that the plot at the end of a run takes (rank 0). Here it is that of a run with a single step."""
        start = self.now()
        if self.processes.is_rank_zero:
            self.run_dir.metrics.write_text('{"step": 1, "loss": 1.0}\n', encoding="utf-8")
            save_curves(self.run_dir.metrics, self.run_dir.curves)
        return self.now() - start

    def sizes(self) -> dict[str, Any]:
        """Parameters, bytes of a checkpoint and of a milestone, steps of the milestones, and rows of an epoch."""
        trainer = self.trainer
        return {
            "parameters": sum(parameter.numel() for parameter in trainer.state.encoder.parameters()),
            "checkpoint_bytes": trainer.state.max_bytes,
            "parameter_bytes": trainer.state.parameter_bytes,
            "milestones": list(trainer.milestones),
            "rows_per_epoch": trainer.sampler.rows_per_epoch,
        }

    def finish_saving(self) -> None:
        """Wait until the checkpoint is written."""
        self.saver.wait()


class Peer:
    """A peer's training step: masks from torch's global generator, mean loss of the batch, default AdamW."""

    def __init__(self, name: str, config: Config, corpora: Sequence[Corpus]) -> None:
        self.config = config
        self.device = Processes(config.device).device
        self.dtype = choose_dtype(config.precision, self.device)
        self.mask_id = corpora[0].tokenizer.mask_id
        self.rows, sampler = choose_rows(config, corpora)
        self.selections = iter(sampler)
        self.model = ENCODERS[name](config.model).to(self.device)  # type: ignore[index]
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.optim.lr)

    def step(self) -> None:
        """Run one step."""
        tokens = torch.from_numpy(self.rows.read(next(self.selections)).astype("int64"))
        inputs, labels = mask_with_global_generator(tokens, self.config, self.mask_id)
        with autocast(self.device, self.dtype):
            loss = self.model(inputs.to(self.device), labels.to(self.device))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def execute(candidate: Candidate, command: str) -> Any:
    """Execute a command: `run N`, `peak_memory`, or a method of the candidate without arguments.

    `run N` returns the mean time of N steps, in seconds.
    """
    name, _, count = command.partition(" ")
    if name == "peak_memory":
        return peak_memory(candidate.device)
    if name != "run":
        return getattr(candidate, name)()
    synchronize(candidate.device)
    start = time.perf_counter()
    for _ in range(int(count)):
        candidate.step()
    synchronize(candidate.device)
    return (time.perf_counter() - start) / int(count)


def serve() -> None:
    """Run the candidate that the command line names: for each command on stdin, print one line of JSON on stdout.

    The command line consists of the candidate's name and a folder with its `config.yaml`, which it may write to.
    """
    name, folder = sys.argv[1], Path(sys.argv[2])
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # other output goes to stderr, so that stdout contains only JSON
    try:
        config = read_config(folder / "config.yaml", {"train.phases": []})  # the steps of the last phase
        opened = [Corpus.open(corpus) for corpus in find_or_prepare_all(config.data, config.model.vocab_size)]
        corpora = join_corpora(opened, config.model.block_size)
        candidate = MlmDist(config, corpora, folder) if name == "mlm_dist" else Peer(name, config, corpora)
        print(json.dumps("ready"), file=replies, flush=True)
        for line in sys.stdin:
            print(json.dumps(execute(candidate, line.strip())), file=replies, flush=True)
    except UserError as error:
        print(json.dumps({"user_error": str(error)}), file=replies, flush=True)
    os._exit(0)  # gloo's threads sometimes abort when the interpreter shuts down
