"""The complete benchmark: what is measured, in which order, and with which settings."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mlm_dist.benchmarks.parts import encoding_rates, matrix_ceiling, random_corpus
from mlm_dist.benchmarks.peers import PeerName
from mlm_dist.benchmarks.runner import Runner, Turn, running, take_turns
from mlm_dist.config import Config, DataConfig, Part
from mlm_dist.data.corpus import MANIFEST, Corpus
from mlm_dist.data.encoding import usable_cores
from mlm_dist.data.mixture import join_corpora
from mlm_dist.data.preparation import find_or_prepare_all
from mlm_dist.distributed import choose_device
from mlm_dist.model.flops import step_flops
from mlm_dist.precision import choose_dtype
from mlm_dist.run.machine import describe_machine

MLM_DIST = "mlm_dist"
TURN_ON_A_CPU = Turn(warm_up="run 1", timed="run 2")
SECONDS_PER_TURN = 1.0  # on a GPU, at least: its clock is low after a turn of another process
MAX_PROCESSES = 8
RANDOM_VOCAB_SIZE = 50258  # of the random corpus: GPT-2's, the default of `prepare`, plus [MASK]

Results = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Suite:
    """What to measure.

    Attributes:
        config: the recipe.
        corpora: of the config. The encoding rate is measured on the text of the first one.
        peers: to compare with.
        rows: per step in the comparison with peers.
        rounds: number of turns of each candidate; medians are reported.
        log: called with a line of progress.
        save: called with the results so far after each part, so that a failure later loses none of them.
    """

    config: Config
    corpora: list[Corpus]
    peers: list[PeerName]
    rows: int
    rounds: int
    log: Callable[[str], None]
    save: Callable[[Results], None]

    def measure(self) -> Results:
        """Run all measurements, which takes minutes.

        Raises:
            UserError: the config does not fit the corpus or the machine.
            RunError: a candidate failed.
        """
        start = time.perf_counter()
        device = choose_device(self.config.device)
        dtype = choose_dtype(self.config.precision, device)
        results: Results = {"machine": describe_machine(device, dtype), "config": dataclasses.asdict(self.config)}
        self.log("matrix-product throughput")
        results["ceiling_flops"] = matrix_ceiling(device, dtype, self.rounds)
        self.log(f"a step of {self.config.train.batch_size} rows")
        results["step"] = self.measure_step(device, results["ceiling_flops"])
        self.save(results)
        self.log(f"steps of {self.rows} rows, alternating: {', '.join([MLM_DIST, *self.peers])}")
        results["peers"] = self.measure_peers(device)
        self.save(results)
        if len(sizes := world_sizes(device, self.config.train.batch_size)) > 1:
            self.log(f"steps on {' and '.join(map(str, sizes))} processes, alternating")
            results["scaling"] = self.measure_scaling(device, sizes)
        self.log("encoding rate")
        results["encoding"] = encoding_rates(self.corpora[0], self.rounds)
        results["seconds"] = time.perf_counter() - start
        self.save(results)
        return results

    def measure_step(self, device: torch.device, ceiling: float) -> Results:
        """Measure a step of the recipe on one process: time, parts, memory, the input path, and the cost of a save."""
        with running([Runner(MLM_DIST, self.config)]) as (runner,):
            runner.send("run 1")
            (times,) = take_turns([runner], [turn_of(runner, device)], self.rounds)
            parts = [runner.send("step_parts")[0] for _ in range(self.rounds)]
            reading = statistics.median(runner.max_over_ranks("read") for _ in range(self.rounds))
            peak = runner.max_over_ranks("peak_memory")
            stall = measure_stall(runner, self.rounds)
        step, flops = statistics.median(times), step_flops(self.config)
        tokens = self.config.train.batch_size * self.config.model.block_size
        return {
            "rows": self.config.train.batch_size,
            **spread(times),
            "tokens_per_second": tokens / step,
            "peak_memory": peak,
            "flops": flops,
            "share_of_ceiling": flops / step / ceiling,
            "parts": {part: statistics.median(measured[part] for measured in parts) for part in parts[0]},
            "input_tokens_per_second": tokens / reading,
            "checkpoint": stall,
        }

    def measure_peers(self, device: torch.device) -> list[Results]:
        """Measure steps of this package and of the peers, in turns."""
        config = with_batch_size(self.config, self.rows)
        with running([Runner(name, config) for name in (MLM_DIST, *self.peers)]) as runners:
            times = take_turns(runners, [turn_of(runner, device) for runner in runners], self.rounds)
            peaks = [runner.max_over_ranks("peak_memory") for runner in runners]
        return [
            {
                "name": runner.name,
                "rows": self.rows,
                **spread(own_times),
                "tokens_per_second": self.rows * config.model.block_size / statistics.median(own_times),
                "speed_up": statistics.median(own_times) / statistics.median(times[0]),
                "peak_memory": peak,
                "memory_ratio": peaks[0] / peak,
            }
            for runner, own_times, peak in zip(runners, times, peaks, strict=True)
        ]

    def measure_scaling(self, device: torch.device, sizes: list[int]) -> list[Results]:
        """Measure the same global batch on one and more processes, in turns. On a CPU, each has one thread."""
        threads = 1 if device.type == "cpu" else None
        with running([Runner(MLM_DIST, self.config, size if size > 1 else None, threads) for size in sizes]) as runners:
            times = take_turns(runners, [turn_of(runner, device) for runner in runners], 2 * self.rounds)
            all_reduces = [
                statistics.median(runner.max_over_ranks("all_reduce") for _ in range(5)) for runner in runners
            ]
        medians = [statistics.median(own_times) for own_times in times]
        return [
            {
                "processes": size,
                **spread(own_times),
                "speed_up": medians[0] / median,
                "efficiency": medians[0] / median / size,
                "all_reduce": all_reduce,
            }
            for size, own_times, median, all_reduce in zip(sizes, times, medians, all_reduces, strict=True)
        ]


def turn_of(runner: Runner, device: torch.device) -> Turn:
    """The turn of a runner on a device: on a GPU, as many steps as take `SECONDS_PER_TURN`, after half as many."""
    if device.type == "cpu":
        return TURN_ON_A_CPU
    runner.send("run 5")
    steps = max(4, math.ceil(SECONDS_PER_TURN / runner.max_over_ranks("run 5")))
    return Turn(f"run {steps // 2}", f"run {steps}")


def spread(times: list[float]) -> Results:
    """The median, fastest and slowest of several times."""
    return {"seconds": statistics.median(times), "fastest": min(times), "slowest": max(times)}


def measure_stall(runner: Runner, rounds: int) -> Results:
    """Seconds for which training is blocked by saving a checkpoint, and by which the next step is slower."""
    before, waits, after = [], [], []
    for _ in range(rounds):
        before.append(runner.max_over_ranks("run 1"))
        waits.append(runner.max_over_ranks("save"))
        after.append(runner.max_over_ranks("run 1"))
        runner.send("finish_saving")
    return {"wait": statistics.median(waits), "slower": statistics.median(after) - statistics.median(before)}


def world_sizes(device: torch.device, batch_size: int) -> list[int]:
    """The world sizes 1, 2, 4 and 8 for which there are enough GPUs or cores, and that divide the batch size."""
    maximum = min(MAX_PROCESSES, torch.cuda.device_count() if device.type == "cuda" else usable_cores())
    return [size for size in (1, 2, 4, 8) if size <= maximum and batch_size % size == 0]


def with_batch_size(config: Config, rows: int) -> Config:
    """The config with this batch size in all steps and without gradient accumulation."""
    train = dataclasses.replace(config.train, batch_size=rows, micro_batch_size=None, phases=[])
    return dataclasses.replace(config, train=train)


def open_corpora(config: Config, folder: Path) -> tuple[Config, list[Corpus]]:
    """Open the corpora of a config. If the default path has none, write one of random tokens into `folder`.

    Text at any other path is first prepared in the user's cache.

    Returns:
        The config to measure, with `model.vocab_size` set and without evaluations, and its corpora.

    Raises:
        UserError: a corpus or text of the config does not exist, or cannot be prepared, or the corpora are no mixture.
    """
    if config.data.path == DataConfig().path and not (Path(config.data.paths) / MANIFEST).exists():
        folders = [folder / "random"]
        config = config.with_vocab_size(RANDOM_VOCAB_SIZE)
        random_corpus(folders[0], config)
    else:
        folders = find_or_prepare_all(config.data, config.model.vocab_size)
    parts = [Part(path=str(path), weight=weight) for path, weight in zip(folders, config.data.weights, strict=True)]
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, path=parts),
        train=dataclasses.replace(config.train, eval_interval=0),
    )
    corpora = join_corpora([Corpus.open(path) for path in folders], config.model.block_size)
    return config.with_vocab_size(corpora[0].tokenizer.vocab_size), corpora
