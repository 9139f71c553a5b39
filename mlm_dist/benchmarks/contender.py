"""One of those that are measured, in a process of its own: `serve` takes steps when the benchmark asks for them.

Each in its own process, because they differ in what the memory allocator does, and to have a peak memory each.
"""

import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

from mlm_dist.benchmarks.parts import synchronize
from mlm_dist.benchmarks.peers import ENCODERS, mask_from_the_global_generator
from mlm_dist.config import Config
from mlm_dist.config_reading import read_config
from mlm_dist.data.corpus import Corpus
from mlm_dist.data.sampler import GlobalBatchSampler
from mlm_dist.distributed import Processes
from mlm_dist.errors import UserError
from mlm_dist.precision import autocast, choose_dtype
from mlm_dist.run.background_saver import BackgroundSaver
from mlm_dist.run.run_dir import RunDir
from mlm_dist.training.memory import keep_freed_memory, peak_memory
from mlm_dist.training.stopping import StopRequest
from mlm_dist.training.trainer import Trainer

BATCHES_TO_READ = 100


class Contender(Protocol):
    """What takes steps.

    Attributes:
        device: on which.
    """

    device: torch.device

    def step(self) -> None:
        """Take one optimizer step, reading and masking of its rows included."""


class Ours:
    """The trainer of this package."""

    def __init__(self, config: Config, corpus: Corpus, folder: Path) -> None:
        keep_freed_memory()
        self.processes = Processes(config.device, config.train.hang_timeout)
        self.trainer = Trainer(config, corpus, self.processes, RunDir(folder), StopRequest())
        self.saver = BackgroundSaver(folder / "checkpoints", keep=1)
        self.device = self.processes.device

    def step(self) -> None:
        """Take one step of the training loop."""
        self.trainer.is_stopping()
        self.trainer.train_step()

    def split(self) -> dict[str, float]:
        """Take one step and tell its parts' seconds. On a GPU each part is waited for, which takes a little longer."""
        forward: list[float] = []
        model = self.trainer.model
        before = model.register_forward_pre_hook(lambda *_: forward.append(-self.now()))
        after = model.register_forward_hook(lambda *_: forward.append(self.now()))
        times = [self.now()]
        batch = self.trainer.next_batch()
        times.append(self.now())
        self.trainer.forward_backward(batch)
        times.append(self.now())
        self.trainer.optimizer_step(self.trainer.learning_rate())
        times.append(self.now())
        before.remove()
        after.remove()
        reading, gradients, update = (end - start for start, end in itertools.pairwise(times))
        parts = {"input": reading, "forward": sum(forward), "backward": gradients - sum(forward), "optimizer": update}
        return parts | {"all-reduce": self.all_reduce()}

    def all_reduce(self) -> float:
        """Seconds that an exchange of all gradients takes by itself; 0 for a single process."""
        if not self.processes.is_distributed:
            return 0.0
        gradients = torch.cat([weight.detach().flatten() for weight in self.trainer.state.encoder.parameters()])
        self.processes.any(False)  # all begin together
        start = self.now()
        dist.all_reduce(gradients)
        return self.now() - start

    def now(self) -> float:
        """The time when all that was asked of the device is done."""
        synchronize(self.device)
        return time.perf_counter()

    def read(self) -> float:
        """Seconds that it takes to read and mask a batch, on average."""
        start = self.now()
        for _ in range(BATCHES_TO_READ):
            self.trainer.next_batch()
        return (self.now() - start) / BATCHES_TO_READ

    def save(self) -> float:
        """Seconds for which the training waits as it begins to save a checkpoint."""
        self.saver.wait()
        start = self.now()
        self.saver.save(self.trainer.state.step, self.trainer.state.state_dict(), {})
        return self.now() - start

    def finish_saving(self) -> None:
        """Wait until the checkpoint is written."""
        self.saver.wait()


class Theirs:
    """A peer's training step: masks from the global generator, a loss of the batch, AdamW as torch makes it."""

    def __init__(self, name: str, config: Config, corpus: Corpus) -> None:
        self.config = config
        self.device = Processes(config.device).device
        self.dtype = choose_dtype(config.precision, self.device)
        self.mask_id = corpus.tokenizer.mask_id
        self.rows = corpus.rows("train", config.model.block_size)
        self.batches = iter(GlobalBatchSampler(len(self.rows), config.train.batch_size, config.seed))
        self.model = ENCODERS[name](config.model).to(self.device)  # type: ignore[index]
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.optim.lr)

    def step(self) -> None:
        """Take one step."""
        tokens = torch.from_numpy(self.rows[next(self.batches).rows].astype("int64"))
        inputs, labels = mask_from_the_global_generator(tokens, self.config, self.mask_id)
        with autocast(self.device, self.dtype):
            loss = self.model(inputs.to(self.device), labels.to(self.device))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def answer(contender: Contender, question: str) -> Any:
    """Do what the benchmark asks for: `run N`, `split`, `read`, `save`, `finish_saving` or `peak_memory`."""
    name, _, count = question.partition(" ")
    if name == "peak_memory":
        return peak_memory(contender.device)
    if name != "run":
        return getattr(contender, name)()
    synchronize(contender.device)
    start = time.perf_counter()
    for _ in range(int(count)):
        contender.step()
    synchronize(contender.device)
    return (time.perf_counter() - start) / int(count)


def serve() -> None:
    """Be the contender that the command line names, and answer each line of stdin with one of JSON on stdout.

    The command line has the contender's name and a folder with its `config.yaml`, where it may write.
    """
    name, folder = sys.argv[1], Path(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints does not come between
    try:
        config = read_config(folder / "config.yaml")
        corpus = Corpus.open(Path(config.data.path))
        contender = Ours(config, corpus, folder) if name == "mlm_dist" else Theirs(name, config, corpus)
        print(json.dumps("ready"), file=answers, flush=True)
        for line in sys.stdin:
            print(json.dumps(answer(contender, line.strip())), file=answers, flush=True)
    except UserError as error:
        print(json.dumps({"refused": str(error)}), file=answers, flush=True)
    os._exit(0)  # gloo's threads abort now and then while Python takes them down
