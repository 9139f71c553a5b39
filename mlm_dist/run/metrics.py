"""metrics.jsonl: one JSON object per line for each event of a run.

The trainer computes losses, norms and rates and passes them to the recorder (recorder.py). Throughput is computed
here.
"""

import json
import math
from pathlib import Path
from typing import Any

from mlm_dist.files import parse_json, read_text, replacing
from mlm_dist.output import warn

Event = dict[str, Any]

METRICS = (
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
LARGEST_METRIC = 1e39  # larger than any fp32 number


def throughput(last: Event, event: Event) -> float:
    """Tokens per second of training, over all ranks, between two logged steps."""
    seconds = event["seconds"] - last["seconds"]
    return float((event["tokens"] - last["tokens"]) / max(seconds, 1e-9))


class MetricsFile:
    """Appends events to a metrics.jsonl. Lines that cannot be written, as on a full disk, are buffered and retried."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)
        self._pending = b""

    def add(self, _: str, event: Event) -> None:
        """Append an event, now or when the file can be written again. JSON has no NaN or infinity: they become null."""
        finite = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in event.items()}
        has_warned = bool(self._pending)
        self._pending += json.dumps(finite).encode() + b"\n"
        try:
            self.flush()
        except OSError as error:
            if not has_warned:
                warn(f"{self.path} cannot be written ({error.strerror}); its lines are buffered and retried")

    def flush(self) -> None:
        """Write the pending lines.

        Raises:
            OSError: for example, the disk is full. The remaining lines stay pending.
        """
        while self._pending:
            self._pending = self._pending[self._file.write(self._pending) :]

    def close(self) -> None:
        """Write the pending lines and close.

        Raises:
            OSError: they cannot be written.
        """
        self.flush()
        self._file.close()

    def abandon(self) -> None:
        """Discard the pending lines and close."""
        self._pending = b""
        self._file.close()


def read_events(path: Path) -> list[Event]:
    """The events of a metrics.jsonl. A last line that is incomplete, because its writer was killed, is dropped.

    Any other line that is not an event is skipped with a warning.

    Raises:
        OSError: the file cannot be read.
    """
    events, skipped = [], []
    *lines, last = read_text(path, errors="replace").split("\n")
    for line_number, line in enumerate([*lines, last], start=1):
        try:
            event = parse_json(line)
        except ValueError:
            event = None
        if is_event(event):
            events.append(event)
        elif line_number <= len(lines):
            skipped.append(line_number)
    if skipped:
        others = f" and {len(skipped) - 1} others are skipped: they are not events"
        warn(f"{path} line {skipped[0]}{others if len(skipped) > 1 else ' is skipped: it is not an event'}")
    return events


def validation_losses(events: list[Event]) -> dict[int, float]:
    """The finite validation losses among events, by step."""
    return {event["step"]: event["val_loss"] for event in events if event.get("val_loss") is not None}


def is_event(value: Any) -> bool:
    """Whether a value is a dict with a step whose metrics, if present, are numbers that can be plotted."""
    if not isinstance(value, dict) or type(value.get("step")) is not int:
        return False
    metrics = [metric for key, metric in value.items() if key.partition("/")[0] in METRICS]  # val_loss/PATH too
    return all(metric is None or (type(metric) in (int, float) and abs(metric) < LARGEST_METRIC) for metric in metrics)


def drop_later_events(path: Path, step: int) -> list[Event]:
    """Remove the events after a step and an incomplete last line from a metrics.jsonl; return the remaining events."""
    if not path.exists():
        return []
    kept = [event for event in read_events(path) if event["step"] <= step] if step else []
    with replacing(path) as file:
        file.write("".join(json.dumps(event) + "\n" for event in kept).encode())
    return kept
