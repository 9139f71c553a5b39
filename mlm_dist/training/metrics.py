"""What a run tells: lines in metrics.jsonl, a progress bar or plain lines, and TensorBoard where it is installed."""

import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mlm_dist.training.run_dir import RunDir, replacing

Event = dict[str, Any]


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
    """

    def __init__(self, run_dir: RunDir, first_step: int, tokens: int, seconds: float, max_iters: int) -> None:
        self.logged: Event = {"tokens": tokens, "seconds": seconds}
        drop_later_events(run_dir.metrics, first_step)
        self.file = run_dir.metrics.open("a", encoding="utf-8")
        self.max_iters = max_iters
        self.last_evaluation = ""
        self.tensorboard = open_tensorboard(run_dir.tensorboard, first_step)
        self.progress = tqdm(
            total=max_iters, initial=first_step, unit="step", disable=not sys.stderr.isatty(), dynamic_ncols=True
        )

    def training(self, **event: float) -> None:
        """Record a training step: `step`, `epoch`, `loss`, `lr`, `grad_norm`, `tokens` and `seconds` so far."""
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
        self.last_evaluation = f"  held-out {event['val_loss']:.3f}"
        self._say(
            f"step {event['step']}/{self.max_iters}  held-out loss {event['val_loss']:.4f}  "
            f"accuracy {event['val_accuracy']:.1%}"
        )

    def close(self) -> None:
        """Close the files."""
        self.progress.close()
        self.file.close()
        if self.tensorboard:
            self.tensorboard.close()

    def _write(self, event: Event, group: str) -> None:
        # JSON has no NaN.
        finite = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in event.items()}
        self.file.write(json.dumps(finite) + "\n")
        self.file.flush()
        if self.tensorboard:
            for key, value in event.items():
                if key != "step":
                    self.tensorboard.add_scalar(f"{group}/{key.removeprefix('val_')}", value, event["step"])

    def _say(self, line: str) -> None:
        if self.progress.disable or not sys.stdout.isatty():
            print(line, flush=True)


def read_events(path: Path) -> list[Event]:
    """The events of a metrics.jsonl; a last line that was cut off when its writer was killed is left out."""
    events = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return events


def drop_later_events(path: Path, step: int) -> None:
    """Rewrite a metrics.jsonl without the events after a step and without a half-written last line."""
    if not path.exists():
        return
    kept = [event for event in read_events(path) if event["step"] <= step] if step else []
    with replacing(path) as file:
        file.write("".join(json.dumps(event) + "\n" for event in kept).encode())


def open_tensorboard(folder: Path, first_step: int) -> Any:
    """A TensorBoard writer, or None where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 (there may be none)
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=first_step + 1)
