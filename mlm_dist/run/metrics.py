"""metrics.jsonl: one JSON object per line for each event of a run."""

import json
import math
from pathlib import Path
from typing import Any

from mlm_dist.files import parse_json, read_text, replacing
from mlm_dist.output import warn

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


class MetricsFile:
    """Appends events to a metrics.jsonl. Lines that a full disk refuses are buffered and retried."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)
        self._pending = b""

    def add(self, _: str, event: Event) -> None:
        """Append an event, now or when the disk has room. JSON has no NaN: null takes its place."""
        finite = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in event.items()}
        has_warned = bool(self._pending)
        self._pending += json.dumps(finite).encode() + b"\n"
        try:
            self.flush()
        except OSError as error:
            if not has_warned:
                warn(f"{self.path} cannot be written ({error.strerror}); its lines are kept until it can")

    def flush(self) -> None:
        """Write the pending lines.

        Raises:
            OSError: the disk is full, say. The rest stays pending.
        """
        while self._pending:
            self._pending = self._pending[self._file.write(self._pending) :]

    def close(self) -> None:
        """Write the pending lines and close.

        Raises:
            OSError: they still cannot be written.
        """
        self.flush()
        self._file.close()

    def abandon(self) -> None:
        """Close without the pending lines."""
        self._pending = b""
        self._file.close()


def read_events(path: Path) -> list[Event]:
    """The events of a metrics.jsonl, without a last line that is incomplete because its writer was killed.

    Any other line that is not an event is skipped with a warning.
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


def is_event(value: Any) -> bool:
    """Whether a value is a mapping with a step whose figures, if present, are numbers that can be plotted."""
    if not isinstance(value, dict) or type(value.get("step")) is not int:
        return False
    figures = [value.get(key) for key in FIGURES]
    return all(figure is None or (type(figure) in (int, float) and abs(figure) < LARGEST_FIGURE) for figure in figures)


def drop_later_events(path: Path, step: int) -> list[Event]:
    """Rewrite a metrics.jsonl without the events after a step and without an incomplete last line; return the rest."""
    if not path.exists():
        return []
    kept = [event for event in read_events(path) if event["step"] <= step] if step else []
    with replacing(path) as file:
        file.write("".join(json.dumps(event) + "\n" for event in kept).encode())
    return kept
