"""Trains contenders until their validation loss has fallen to a target: how many tokens and how much time each needs.

A contender is a config of this package or a peer. Each of its runs has a seed, a process and a run directory of its
own, so the same command continues an interrupted comparison.
"""

import dataclasses
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mlm_dist.benchmarks.runner import GROUP_VARIABLES
from mlm_dist.config import Config
from mlm_dist.data.encoding import usable_cores
from mlm_dist.errors import RunError, UserError
from mlm_dist.files import read_json, read_text, replacing
from mlm_dist.run.history import History, read_history
from mlm_dist.run.metrics import read_events, validation_losses
from mlm_dist.run.run_dir import RunDir
from mlm_dist.training.memory import peak_memory_of

POLL_SECONDS = 0.5
PEER_RATES = (1e-4, 3e-4, 1e-3)
TEXT_KEYS = ("path", "tokenizer", "encoding", "text_key", "split", "val_fraction", "documents")
PEAKS = "peak_memory.json"
TRAINERS = {"mlm_dist": "mlm_dist.train", "transformers": "mlm_dist.benchmarks.peer_training"}
START = "from {} import main; from mlm_dist.exit_codes import run_verb; run_verb(main, prints_only_a_log=True)"


class Contender(NamedTuple):
    """What is trained.

    Attributes:
        name: in tables, and in the names of run directories.
        config: of its runs, except for their `seed` and `run_dir`.
        trainer: who trains it, of `TRAINERS`.
    """

    name: str
    config: Config
    trainer: str = "mlm_dist"


class Cost(NamedTuple):
    """What a run took until its first evaluation at or below the target.

    Attributes:
        steps: optimizer steps.
        tokens: that it read.
        seconds: of training, without evaluations.
        peak_memory: of its process, in bytes of the memory of the machine, not of a GPU; 0 where it is not known.
    """

    steps: float
    tokens: float
    seconds: float
    peak_memory: float


class ToLoss:
    """A comparison of contenders.

    Args:
        target: the validation loss, in nats.
        out: the folder of all runs, which exists.
        at_a_time: how many runs share the machine. Each has an equal part of the cores.
        log: called with a line of progress.
    """

    def __init__(self, target: float, out: Path, at_a_time: int, log: Callable[[str], None]) -> None:
        self.target = target
        self.out = out
        self.at_a_time = at_a_time
        self.log = log
        self.is_over = threading.Event()  # set by the first failure: the other runs stop too
        self.peaks_lock = threading.Lock()

    def train_all(self, contenders: Sequence[Contender], seeds: Sequence[int]) -> None:
        """Train all contenders with all seeds, in turns. Runs that have reached the target are not trained again.

        Raises:
            UserError: a run refuses its config.
            RunError: a run failed.
        """
        with ThreadPoolExecutor(self.at_a_time) as pool:
            runs = [pool.submit(self.train, contender, seed) for seed in seeds for contender in contenders]
            try:
                for run in as_completed(runs):
                    run.result()
            except BaseException:
                self.is_over.set()
                pool.shutdown(cancel_futures=True)
                raise

    def run_dir(self, contender: Contender, seed: int) -> RunDir:
        """The run directory of a contender with a seed."""
        return RunDir(self.out / f"{contender.name}-{seed}")

    def train(self, contender: Contender, seed: int) -> None:
        """Train, or continue, a run until it reaches the target or ends.

        Raises:
            UserError: it was begun with another config, or refuses this one.
            RunError: it failed, or was stopped by someone else.
        """
        run = self.run_dir(contender, seed)
        config = dataclasses.replace(contender.config, seed=seed, run_dir=str(run.path)).to_yaml()
        file = run.path.with_name(f"{run.path.name}.yaml")
        if run.metrics.exists() and file.exists() and read_text(file) != config:
            raise UserError(f"{run.path} was trained with another config: give another --out")
        if self.is_over.is_set() or run.done.exists() or self.has_reached_target(run):
            return
        self.log(f"{contender.name}, seed {seed}")
        file.write_text(config, encoding="utf-8")
        start = START.format(TRAINERS[contender.trainer])
        peak = self.watch(run, [sys.executable, "-c", start, "--config", str(file)])
        with self.peaks_lock, replacing(self.out / PEAKS) as content:
            peaks = self.peaks() | {run.path.name: max(peak, self.peaks().get(run.path.name, 0))}
            content.write(json.dumps(peaks, indent=1).encode())

    def watch(self, run: RunDir, command: list[str]) -> int:
        """Run a command until its run reaches the target or ends. Returns the peak memory of the process, in bytes."""
        environment = {key: value for key, value in os.environ.items() if key not in GROUP_VARIABLES}
        if self.at_a_time > 1:
            environment["OMP_NUM_THREADS"] = str(max(1, usable_cores() // self.at_a_time))
        log, peak, is_stopping = run.path.with_name(f"{run.path.name}.log"), 0, False
        with (
            log.open("wb") as output,
            subprocess.Popen(command, stdout=output, stderr=output, env=environment) as process,
        ):
            while process.poll() is None:
                peak = max(peak, peak_memory_of(process.pid))
                if self.is_over.wait(POLL_SECONDS):
                    process.terminate()
                    process.wait()
                elif not is_stopping and self.has_reached_target(run):
                    run.stop.touch()
                    is_stopping = True
        run.stop.unlink(missing_ok=True)  # if the run had already ended by itself
        if self.is_over.is_set() or run.done.exists() or self.has_reached_target(run):
            return peak
        *_, last = ["no output", *log.read_text(encoding="utf-8").strip().splitlines()]
        error = UserError if process.returncode == UserError.exit_code else RunError
        reason = last.removeprefix("mlm_dist: error: ") if process.returncode else "it was stopped before its last step"
        raise error(f"{run.path.name}: {reason}")

    def has_reached_target(self, run: RunDir) -> bool:
        """Whether a run has an evaluation at or below the target."""
        losses = validation_losses(read_events(run.metrics)) if run.metrics.exists() else {}
        return any(loss <= self.target for loss in losses.values())

    def history(self, run: RunDir) -> History:
        """The metrics of a run."""
        return read_history(run.metrics, run.path.name)

    def peaks(self) -> dict[str, int]:
        """The peak memory of each run, in bytes."""
        return dict(read_json(self.out / PEAKS)) if (self.out / PEAKS).exists() else {}

    def cost(self, contender: Contender, seed: int) -> Cost | None:
        """What a run took to the target; None if it ended before."""
        run = self.run_dir(contender, seed)
        evaluations = self.history(run).evaluations
        found = np.flatnonzero(evaluations["val_loss"] <= self.target)
        if not len(found):
            return None
        steps, tokens, seconds = (float(evaluations[key][found[0]]) for key in ("step", "tokens", "seconds"))
        return Cost(steps, tokens, seconds, self.peaks().get(run.path.name, 0))


def check_comparable(contenders: Sequence[Contender]) -> None:
    """Raise `UserError` if contenders are not evaluated on the same rows and masks, after the same steps."""
    first, *others = contenders
    wanted = evaluation_keys(first.config)
    for other in others:
        for key, value in evaluation_keys(other.config).items():
            if value != wanted[key]:
                raise UserError(
                    f"{first.name} has {key} {wanted[key]} and {other.name} has {value}: they cannot be compared"
                )
    if not first.config.train.eval_interval:
        raise UserError("train.eval_interval is 0: there is no validation loss to reach")


def evaluation_keys(config: Config) -> dict[str, object]:
    """The config keys that decide on the rows and masks of evaluations, and on their steps."""
    masking = config.masking
    return {
        **{f"data.{key}": getattr(config.data, key) for key in TEXT_KEYS},
        "train.eval_interval": config.train.eval_interval,
        "model.vocab_size": config.model.vocab_size,
        "model.block_size": config.model.block_size,
        "train.eval_rows": config.train.eval_rows,
        "masking.mask_prob at the end of the run": masking.endpoints[1],
        "masking.mask_prob_range": masking.mask_prob_range,
        "masking.unit": masking.unit,
        "masking.replacement": masking.replacement,
    }


def train_peer(comparison: ToLoss, config: Config) -> Contender:
    """Train the peer at each of `PEER_RATES` with seed 1. Returns it with the rate that was best for it.

    The best rate reached the target after the fewest steps, or else had the lowest validation loss.

    Raises:
        UserError: the peer cannot be trained or evaluated as this config is, or as `ToLoss.train_all`.
    """
    is_plain = len(config.data.parts) == 1 and config.data.documents == "joined" and not config.train.phases
    if not is_plain or config.precision == "fp16":
        raise UserError(
            "--against transformers needs one corpus, data.documents joined, no train.phases, and another precision "
            "than fp16"
        )
    trials = [Contender(f"transformers-{rate:g}", with_rate(config, rate), "transformers") for rate in PEER_RATES]
    comparison.train_all(trials, [1])
    results = []
    for trial in trials:
        cost = comparison.cost(trial, 1)
        losses = validation_losses(read_events(comparison.run_dir(trial, 1).metrics))
        lowest = min(losses.values(), default=math.inf)
        results.append((cost.steps if cost else math.inf, lowest, trial))
        reached = f"reaches the target after {cost.steps:.0f} steps" if cost else "never reaches the target"
        comparison.log(f"{trial.name} {reached}; its lowest validation loss is {lowest:.4f}")
    return min(results, key=lambda result: result[:2])[2]


def with_rate(config: Config, rate: float) -> Config:
    """The config with this learning rate."""
    return dataclasses.replace(config, optim=dataclasses.replace(config.optim, lr=rate))
