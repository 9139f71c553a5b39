"""What a run tells: lines in metrics.jsonl, and a progress bar or plain lines."""

import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mlm_dist.errors import tell, warn
from mlm_dist.files import parse_json, read_text, replacing
from mlm_dist.run.run_dir import RunDir
from mlm_dist.run.tensorboard import TensorBoard

Event = dict[str, Any]

FIGURES = (
    "step",
    "epoch",
    "loss",
    "lr",
    "grad_norm",
    "tokens",
    "tokens_per_second",
    "seconds",
    "val_loss",
    "val_accuracy",
)
LARGEST_FIGURE = 1e39  # beyond those of fp32


class Stopwatch:
    """Adds up the time spent training, without what is done while it is paused.

    Args:
        seconds: to start from.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since = time.perf_counter()

    def read(self) -> float:
        """Seconds up to now."""
        now = time.perf_counter()
        self._seconds += now - self._since
        self._since = now
        return self._seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time that the block takes."""
        self.read()
        yield
        self._since = time.perf_counter()


class Recorder:
    """Records the events of a run; rank 0 has the only one.

    Args:
        run_dir: where to.
        first_step: steps taken before this process; later lines, left by a process that was killed, are dropped.
        tokens, seconds: used up to then.
        max_iters: steps in all.

    Attributes:
        val_losses: of this run up to now, by step.
    """

    def __init__(self, run_dir: RunDir, first_step: int, tokens: int, seconds: float, max_iters: int) -> None:
        self.logged: Event = {"tokens": tokens, "seconds": seconds}
        kept = drop_later_events(run_dir.metrics, first_step)
        self.val_losses: dict[int, float] = {
            event["step"]: event["val_loss"] for event in kept if event.get("val_loss") is not None
        }
        self.file = PatientFile(run_dir.metrics)
        self.max_iters = max_iters
        self.last_evaluation = ""
        self.tensorboard = TensorBoard(run_dir.tensorboard, first_step)
        self.progress = tqdm(
            total=max_iters, initial=first_step, unit="step", disable=not sys.stderr.isatty(), dynamic_ncols=True
        )

    def training(self, **event: Any) -> None:
        """Record a step: `step`, `epoch`, `loss`, `lr`, `grad_norm`, `tokens` and `seconds` so far, and `digest`."""
        tokens, seconds = event["tokens"] - self.logged["tokens"], event["seconds"] - self.logged["seconds"]
        event["tokens_per_second"] = tokens / max(seconds, 1e-9)
        self.logged = event
        self._write(event, "train")
        self.progress.update(event["step"] - self.progress.n)
        self.progress.set_postfix_str(f"loss {event['loss']:.3f}{self.last_evaluation}")
        self._say(
            f"step {event['step']}/{self.max_iters}  loss {event['loss']:.4f}  lr {event['lr']:.2e}  "
            f"grad_norm {event['grad_norm']:.3f}  {event['tokens_per_second']:,.0f} tokens/s"
        )

    def evaluation(self, **event: float) -> None:
        """Record an evaluation: `step`, `val_loss`, `val_accuracy`."""
        self._write(event, "val")
        if math.isfinite(event["val_loss"]):
            self.val_losses[int(event["step"])] = event["val_loss"]
        self.last_evaluation = f"  held-out {event['val_loss']:.3f}"
        self._say(
            f"step {event['step']}/{self.max_iters}  held-out loss {event['val_loss']:.4f}  "
            f"accuracy {event['val_accuracy']:.1%}"
        )

    def skipped(self, step: int, **details: Any) -> None:
        """Record that a step was left out, and why."""
        self._write({"step": step, **details}, "skipped")
        named = ", ".join(f"rank {rank}" for rank in details["ranks"]) or "all ranks together"
        warn(
            f"step {step} is left out: {details['skipped']}, on {named} "
            f"({details['in_a_row']} in a row; its rows are in {self.file.path})"
        )

    def close(self) -> None:
        """Close the files.

        Raises:
            OSError: events are left that could not be written.
        """
        self.file.close()
        self.abandon()

    def abandon(self) -> None:
        """Close the files without the events that could not be written. Does nothing the second time."""
        self.progress.close()
        self.file.abandon()
        self.tensorboard.close()

    def _write(self, event: Event, group: str) -> None:
        # JSON has no NaN.
        finite = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in event.items()}
        self.file.write(json.dumps(finite) + "\n")
        figures = {key.removeprefix("val_"): value for key, value in event.items() if isinstance(value, float)}
        self.tensorboard.add(group, figures, event["step"])

    def _say(self, line: str) -> None:
        if self.progress.disable or not sys.stdout.isatty():
            tell(line)


class PatientFile:
    """A file that grows by lines. Those that a full disk refuses are kept and written as soon as it takes them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)
        self._waiting = b""

    def write(self, line: str) -> None:
        """Append a line, now or later."""
        delayed = bool(self._waiting)
        self._waiting += line.encode()
        try:
            self._write_waiting()
        except OSError as error:
            if not delayed:
                warn(f"{self.path} cannot be written ({error.strerror}); its lines are kept until it can")

    def close(self) -> None:
        """Write what is left and close.

        Raises:
            OSError: it still cannot be written.
        """
        self._write_waiting()
        self._file.close()

    def abandon(self) -> None:
        """Close without what is left to write."""
        self._waiting = b""
        self._file.close()

    def _write_waiting(self) -> None:
        while self._waiting:
            self._waiting = self._waiting[self._file.write(self._waiting) :]


def read_events(path: Path) -> list[Event]:
    """The events of a metrics.jsonl; a last line that was cut off when its writer was killed is left out.

    So is, with a warning, any other line that is no event.
    """
    events, left_out = [], []
    *lines, last = read_text(path, errors="replace").split("\n")
    for number, line in enumerate([*lines, last], start=1):
        try:
            event = parse_json(line)
        except ValueError:
            event = None
        if is_event(event):
            events.append(event)
        elif number <= len(lines):
            left_out.append(number)
    if left_out:
        others = f" and {len(left_out) - 1} others are left out: they are no events"
        warn(f"{path} line {left_out[0]}{others if len(left_out) > 1 else ' is left out: it is no event'}")
    return events


def is_event(value: Any) -> bool:
    """Whether a value is a mapping with a step, and whatever figures it has are numbers that can be drawn."""
    if not isinstance(value, dict) or type(value.get("step")) is not int:
        return False
    figures = [value.get(key) for key in FIGURES]
    return all(figure is None or (type(figure) in (int, float) and abs(figure) < LARGEST_FIGURE) for figure in figures)


def drop_later_events(path: Path, step: int) -> list[Event]:
    """Rewrite a metrics.jsonl without the events after a step and without a half-written last line; return the rest."""
    if not path.exists():
        return []
    kept = [event for event in read_events(path) if event["step"] <= step] if step else []
    with replacing(path) as file:
        file.write("".join(json.dumps(event) + "\n" for event in kept).encode())
    return kept
