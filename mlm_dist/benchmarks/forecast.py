"""What a run will take, from a few of its real steps: memory, disk, epochs, time."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from mlm_dist.benchmarks.runner import Runner, running
from mlm_dist.benchmarks.suite import MLM_DIST, measure_stall, with_batch_size
from mlm_dist.config import Config, largest_divisor
from mlm_dist.data.corpus import Corpus
from mlm_dist.data.mixture import join_corpora
from mlm_dist.data.preparation import find_or_prepare_all
from mlm_dist.distributed import choose_device
from mlm_dist.errors import UserError
from mlm_dist.phases import Phases
from mlm_dist.run.run_dir import most_checkpoints
from mlm_dist.training.memory import bytes_of_activations, total_memory

USABLE = 0.8  # of the memory, because peaks that are extrapolated from few rows are up to a fifth too low
WARM_UP = {"cpu": "run 2", "cuda": "run 20"}  # until the optimizer has its state and, on a GPU, the graph is captured
ROUNDS = 3
SECONDS_PER_ROUND = 3.0
MOST_STEPS = 50  # of a round
LONGEST_SAMPLE = 200  # steps


class Forecast(NamedTuple):
    """What a run will take. Memory is that of each process, in bytes, and times are in seconds.

    Attributes:
        parameters: their number.
        rows_at_a_time: rows per forward pass.
        peak_memory: measured if it fits, otherwise extrapolated from fewer rows.
        memory: that each process may take.
        most_rows: rows per forward pass that fit into it, extrapolated.
        fitting_micro_batch_size: None if the config fits as it is; otherwise the largest `train.micro_batch_size` that
            fits, with which the times are measured.
        checkpoints: the most that the run has on the disk at a time.
        milestones: that the run saves.
        disk: bytes of these checkpoints and milestones, and of model.pth.
        tokens: that the run reads.
        rows_per_epoch: that an epoch reads, of all corpora.
        epochs: of the run.
        start: until the first step, and the plot after the last one.
        step: one step.
        evaluation: one evaluation; 0 without evaluations.
        checkpoint: the delay by one checkpoint.
        total: the whole run.
    """

    parameters: int
    rows_at_a_time: int
    peak_memory: int
    memory: int
    most_rows: int
    fitting_micro_batch_size: int | None
    checkpoints: int
    milestones: int
    disk: int
    tokens: int
    rows_per_epoch: int
    epochs: float
    start: float
    step: float
    evaluation: float
    checkpoint: float
    total: float


class Sample(NamedTuple):
    """What a few steps of a run took, as in `Forecast`, and the sizes that `MlmDist.sizes` returns."""

    sizes: dict[str, Any]
    peak_memory: int
    start: float
    step: float
    evaluation: float
    checkpoint: float


def forecast(config: Config, processes: int, log: Callable[[str], None]) -> Forecast:
    """Take a few steps of a run, and of smaller ones, in processes that write into temporary folders only.

    Args:
        config: of the run, with `model.vocab_size` set.
        processes: their number, all on this machine.
        log: called with a line of progress.

    Raises:
        UserError: the config does not fit the corpora or the machine.
        RunError: a process failed.
    """
    rows, memory = config.micro_batch_size(processes), usable_memory(config, processes)
    few = max(1, rows // 4)
    log(f"measuring: steps of {few} and {2 * few} rows")
    base, twice = (peak_of_step(config, count, processes) for count in (few, 2 * few))
    per_row = max((twice - base) / few, bytes_of_activations(config, 1))
    most_rows = few + math.floor((memory - base) / per_row)
    fitting = None if rows <= most_rows else fitting_rows(config.train.batch_size // processes, most_rows)
    if fitting:
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, micro_batch_size=fitting))
    log("measuring: steps of the run")
    sample = take_sample(config, processes)
    checkpoints = most_checkpoints(config)
    milestones = sum(step <= config.train.max_iters for step in sample.sizes["milestones"])
    checkpoint_bytes, parameter_bytes = sample.sizes["checkpoint_bytes"], sample.sizes["parameter_bytes"]
    read = Phases(config).rows_before(config.train.max_iters)
    return Forecast(
        parameters=sample.sizes["parameters"],
        rows_at_a_time=rows,
        peak_memory=round(base + per_row * (rows - few)) if fitting else sample.peak_memory,
        memory=memory,
        most_rows=most_rows,
        fitting_micro_batch_size=fitting,
        checkpoints=checkpoints,
        milestones=milestones,
        disk=checkpoints * checkpoint_bytes + (milestones + 1) * parameter_bytes,
        tokens=read * config.model.block_size,
        rows_per_epoch=sample.sizes["rows_per_epoch"],
        epochs=read / sample.sizes["rows_per_epoch"],
        start=sample.start,
        step=sample.step,
        evaluation=sample.evaluation,
        checkpoint=sample.checkpoint,
        total=total_seconds(config, sample),
    )


def open_corpora(config: Config) -> tuple[Config, list[Corpus]]:
    """The config with the vocabulary size of its corpora, and these. Texts are first prepared in the user's cache.

    Raises:
        UserError: there is no such corpus or text, or it cannot be prepared.
    """
    opened = [Corpus.open(folder) for folder in find_or_prepare_all(config.data, config.model.vocab_size)]
    corpora = join_corpora(opened, config.model.block_size)
    return config.with_vocab_size(corpora[0].tokenizer.vocab_size), corpora


def usable_memory(config: Config, processes: int) -> int:
    """Bytes of memory that each process may take."""
    device = choose_device(config.device)
    return int(USABLE * total_memory(device) / (processes if device.type == "cpu" else 1))


def peak_of_step(config: Config, rows: int, processes: int) -> int:
    """Peak memory of a process that takes steps, evaluates and saves a checkpoint, with this many rows at a time."""
    config = with_batch_size(config, rows * processes)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, eval_rows=rows * processes))
    with running([start(config, processes)]) as (runner,):
        for command in (warm_up(config), *evaluate(config), "save", "run 1", "finish_saving"):
            runner.send(command)
        return int(runner.max_over_ranks("peak_memory"))


def take_sample(config: Config, processes: int) -> Sample:
    """Take steps of a run, save a checkpoint while it goes on, evaluate, and plot: all that takes memory or time."""
    before = time.perf_counter()
    with running([start(config, processes)]) as (runner,):
        ready = time.perf_counter() - before
        runner.send(warm_up(config))
        steps = min(MOST_STEPS, math.ceil(SECONDS_PER_ROUND / runner.max_over_ranks("run 1")))
        step = statistics.median(runner.max_over_ranks(f"run {steps}") for _ in range(ROUNDS))
        evaluation = sum(runner.max_over_ranks(command) for command in evaluate(config))
        stall = measure_stall(runner, rounds=2)
        plot = runner.max_over_ranks("plot")
        (sizes, *_), peak = runner.send("sizes"), int(runner.max_over_ranks("peak_memory"))
    return Sample(sizes, peak, ready + plot, step, evaluation, max(0.0, stall["wait"] + stall["slower"]))


def start(config: Config, processes: int) -> Runner:
    """Start the processes of a run. On a CPU, each of several has one thread, as under torchrun."""
    threads = 1 if processes > 1 and choose_device(config.device).type == "cpu" else None
    long_enough = max(config.train.max_iters, LONGEST_SAMPLE)  # no schedule ends while it is measured
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, max_iters=long_enough))
    return Runner(MLM_DIST, config, processes if processes > 1 else None, threads)


def warm_up(config: Config) -> str:
    """The command for the first steps."""
    return WARM_UP[choose_device(config.device).type]


def evaluate(config: Config) -> list[str]:
    """The command for an evaluation; none if the run has none."""
    return ["evaluate"] if config.train.eval_interval else []


def total_seconds(config: Config, sample: Sample) -> float:
    """Seconds of a whole run."""
    steps, interval = config.train.max_iters, config.train.eval_interval
    # The time of a step is assumed to be proportional to its rows.
    full_steps = Phases(config).rows_before(steps) / config.train.batch_size
    evaluations = 1 + math.ceil(steps / interval) if interval else 0  # before the first step, and after the last one
    checkpoints = math.ceil(steps / config.checkpoint.interval)
    return sample.start + full_steps * sample.step + evaluations * sample.evaluation + checkpoints * sample.checkpoint


def fitting_rows(rows: int, most: int) -> int:
    """The largest divisor of a number of rows that is at most `most`.

    Raises:
        UserError: that is below 1.
    """
    if most < 1:
        raise UserError("not even a single row at a time fits into the memory: make the model smaller")
    return largest_divisor(rows, most)
