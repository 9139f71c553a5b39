"""Recording a run: rank 0 passes each event to every sink. Other ranks have no sinks and record nothing."""

import dataclasses
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol

from tqdm.auto import tqdm

from mlm_dist.config import Config
from mlm_dist.config_reading import flatten
from mlm_dist.fault_points import reached
from mlm_dist.output import print_log, warn
from mlm_dist.run.metrics import Event, MetricsFile, drop_later_events, throughput, validation_losses
from mlm_dist.run.run_dir import RunDir
from mlm_dist.run.trackers import TrackerSink

Kind = Literal["train", "val", "skipped"]
IN_NOTEBOOK = any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__)


class Sink(Protocol):
    """A destination of events. An exception from it ends the run, so a sink that may fail should warn instead."""

    def add(self, kind: Kind, event: Event) -> None:
        """Record an event. It has a `step`; its metrics depend on the kind, and may be NaN or infinite."""

    def close(self) -> None:
        """Write pending events and close. Does nothing the second time.

        Raises:
            OSError: they cannot be written.
        """

    def abandon(self) -> None:
        """Discard pending events and close. Does nothing after `close`."""


class Recorder:
    """Passes the events of a run to its sinks.

    Args:
        sinks: the destinations; none on ranks other than 0.
        tokens, seconds: tokens read and training time before the first event.
        val_losses: the finite validation losses so far, by step.

    Attributes:
        val_losses: those, and the ones recorded since.
    """

    def __init__(
        self,
        sinks: Sequence[Sink],
        tokens: int = 0,
        seconds: float = 0.0,
        val_losses: Mapping[int, float] | None = None,
    ) -> None:
        self.sinks = sinks
        self.val_losses = dict(val_losses or {})
        self._last = {"tokens": tokens, "seconds": seconds}

    @classmethod
    def open(cls, run_dir: RunDir, config: Config, step: int, tokens: int, seconds: float) -> "Recorder":
        """Open the sinks of a run at `step`. Later events, which a killed process wrote, are dropped."""
        reached("recorder opens")
        kept = drop_later_events(run_dir.metrics, step)
        reached("later events dropped")
        val_losses = validation_losses(kept)
        values = dict(flatten(dataclasses.asdict(config)))
        sinks: list[Sink] = [
            MetricsFile(run_dir.metrics),
            Progress(run_dir, step, config.train.max_iters),
            *(TrackerSink(name, run_dir.path, values, step) for name in config.report_to),
        ]
        return cls(sinks, tokens, seconds, val_losses)

    def log_step(self, **event: Any) -> None:
        """Record a step: `step`, `epoch`, `loss`, `lr`, `grad_norm`, `tokens` and `seconds` so far, and `digest`."""
        self._add("train", event | {"tokens_per_second": throughput(self._last, event)})
        self._last = event

    def log_evaluation(self, **event: float) -> None:
        """Record an evaluation: `step`, `val_loss`, `val_accuracy`."""
        if math.isfinite(event["val_loss"]):
            self.val_losses[int(event["step"])] = event["val_loss"]
        self._add("val", event)

    def log_skipped_step(self, **event: Any) -> None:
        """Record a skipped step: `step`, `skipped` (why), `in_a_row`, `ranks` and `rows`."""
        self._add("skipped", event)

    def close(self) -> None:
        """Close all sinks.

        Raises:
            OSError: events could not be written.
        """
        for sink in self.sinks:
            sink.close()

    def abandon(self) -> None:
        """Discard pending events and close all sinks. Does nothing after `close`."""
        for sink in self.sinks:
            sink.abandon()

    def _add(self, kind: Kind, event: Event) -> None:
        for sink in self.sinks:
            reached("event goes to a sink")
            sink.add(kind, event)
        reached("event recorded")


class Progress:
    """A progress bar on a terminal and in a notebook; otherwise one line per event.

    Args:
        run_dir: the run directory.
        step: steps taken before this process.
        max_iters: steps of the run.
    """

    def __init__(self, run_dir: RunDir, step: int, max_iters: int) -> None:
        self.run_dir = run_dir
        self.max_iters = max_iters
        self.last_evaluation = ""
        self.shows_bar = IN_NOTEBOOK or sys.stderr.isatty()
        self.bar = tqdm(total=max_iters, initial=step, unit="step", disable=not self.shows_bar, dynamic_ncols=True)

    def add(self, kind: Kind, event: Event) -> None:
        """Show an event."""
        at = f"step {event['step']}/{self.max_iters}"
        if kind == "train":
            self.bar.update(event["step"] - self.bar.n)
            self.bar.set_postfix_str(f"loss {event['loss']:.3f}{self.last_evaluation}")
            self._print(
                f"{at}  loss {event['loss']:.4f}  lr {event['lr']:.2e}  grad_norm {event['grad_norm']:.3f}  "
                f"{event['tokens_per_second']:,.0f} tokens/s"
            )
        elif kind == "val":
            self.last_evaluation = f"  validation {event['val_loss']:.3f}"
            by_corpus = [
                f"{key.partition('/')[2]} {value:.4f}" for key, value in event.items() if key.startswith("val_loss/")
            ]
            corpora = f" ({', '.join(by_corpus)})" if by_corpus else ""
            self._print(f"{at}  validation loss {event['val_loss']:.4f}{corpora}  accuracy {event['val_accuracy']:.1%}")
        else:
            ranks = ", ".join(f"rank {rank}" for rank in event["ranks"]) or "all ranks"
            warn(
                f"step {event['step']} is skipped: {event['skipped']}, on {ranks} "
                f"({event['in_a_row']} in a row; its rows are in {self.run_dir.metrics})"
            )

    def close(self) -> None:
        """Close the progress bar."""
        self.bar.close()

    abandon = close

    def _print(self, line: str) -> None:
        if not self.shows_bar or not (IN_NOTEBOOK or sys.stdout.isatty()):
            print_log(line)


class Stopwatch:
    """Measures the time spent in training, without the blocks in which it is paused.

    Args:
        seconds: the time to start from.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since = time.perf_counter()

    def read(self) -> float:
        """Seconds so far."""
        now = time.perf_counter()
        self._seconds += now - self._since
        self._since = now
        return self._seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time of the block."""
        self.read()
        yield
        self._since = time.perf_counter()
