"""Experiment trackers show the metrics of a run. docs/extending.md shows how to add one."""

import json
import os
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from mlm_dist.errors import UserError
from mlm_dist.files import read_json
from mlm_dist.output import warn
from mlm_dist.run.metrics import Event

PROJECT = "mlm_dist"


@dataclass(frozen=True)
class TrackedRun:
    """The run whose metrics a tracker shows.

    Attributes:
        run_id: identifies the run, also after it is resumed.
        path: the run directory.
        config: the resolved config, by dotted key.
        step: steps taken before this process.
    """

    run_id: str
    path: Path
    config: dict[str, Any]
    step: int


class Tracker(Protocol):
    """Shows metrics. If a method raises, a warning is printed and the run continues without the tracker."""

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Log metrics such as `train/loss`. Steps never decrease, and a resumed run logs no step again."""

    def close(self) -> None:
        """Write pending metrics."""


class TensorBoard:
    """Writes event files into the `tensorboard` folder of the run directory."""

    def __init__(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 (slow to import)

        # A run that starts at step 0 hides the events of an earlier run in the same directory.
        self.writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=None if run.step else 0)
        self.previous_hook, threading.excepthook = threading.excepthook, print_unless_os_error

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Log metrics."""
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write pending metrics."""
        try:
            self.writer.close()
        finally:
            threading.excepthook = self.previous_hook


def print_unless_os_error(failure: threading.ExceptHookArgs) -> None:
    """Print a thread's traceback, except for a failed write of TensorBoard, whose next call raises it."""
    if not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)


class WandB:
    """Logs to Weights & Biases; with WANDB_MODE=offline, into the run directory, for `wandb sync`."""

    def __init__(self, run: TrackedRun) -> None:
        import wandb  # noqa: PLC0415 (slow to import)

        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=run.run_id,
            name=run.path.name,
            resume="allow",
            dir=run.path,
            config=run.config,
        )

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Log metrics."""
        self.run.log(metrics, step=step)

    def close(self) -> None:
        """Write pending metrics."""
        self.run.finish()


class MLflow:
    """Logs to MLFLOW_TRACKING_URI, or else into mlflow.db in the run directory."""

    def __init__(self, run: TrackedRun) -> None:
        from mlflow import MlflowClient  # noqa: PLC0415 (slow to import)

        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run.path.absolute()}/mlflow.db"
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        self.client = MlflowClient(tracking_uri=uri)
        experiment = self.client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else self.client.create_experiment(name)
        known = self.client.search_runs([experiment_id], f"tags.`mlm_dist.run_id` = '{run.run_id}'")
        if known:
            self.run_id = known[0].info.run_id
            self.client.update_run(self.run_id, status="RUNNING")
        else:
            tags = {"mlm_dist.run_id": run.run_id}
            self.run_id = self.client.create_run(experiment_id, tags=tags, run_name=run.path.name).info.run_id
            for key, value in run.config.items():
                self.client.log_param(self.run_id, key, value)

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Log metrics."""
        for name, value in metrics.items():
            self.client.log_metric(self.run_id, name, value, step=step)

    def close(self) -> None:
        """Mark the run as finished."""
        self.client.set_terminated(self.run_id)


TRACKERS: dict[str, Callable[[TrackedRun], Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}
"""The trackers that `report_to` can name."""

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
"""The package that each tracker needs."""


def check_trackers(names: Iterable[str]) -> None:
    """Raise `UserError` if a tracker is unknown or its package is not installed."""
    for name in names:
        if name not in TRACKERS:
            raise UserError(f"report_to: {name} is not a tracker; the trackers are {', '.join(TRACKERS)}")
        if name in PACKAGES and find_spec(PACKAGES[name]) is None:
            raise UserError(f"report_to: {name} is not installed: pip install 'mlm_dist[{name}]'")


class TrackerSink:
    """Passes the events of a run to a tracker. A tracker that fails is closed with a warning.

    A run that is resumed after it was killed repeats steps. So `tracker-NAME.json` has the last logged step of each
    kind of event, and steps up to it are not logged again.

    Args:
        name: a key of `TRACKERS`.
        path: the run directory.
        config: the resolved config, by dotted key.
        step: steps taken before this process.
    """

    def __init__(self, name: str, path: Path, config: dict[str, Any], step: int) -> None:
        self.name = name
        self.logged_path = path / f"tracker-{name}.json"
        self.run_id, self.last_steps = read_logged(self.logged_path) if step else new_log()
        self.tracker: Tracker | None = None
        with self.guarded():
            self.tracker = TRACKERS[name](TrackedRun(self.run_id, path, config, step))

    def add(self, kind: str, event: Event) -> None:
        """Log the metrics of an event, in a group named after its kind."""
        step = event["step"]
        metrics = {f"{kind}/{key.removeprefix('val_')}": value for key, value in event.items() if type(value) is float}
        if self.tracker is None or not metrics or step <= self.last_steps.get(kind, -1):
            return
        with self.guarded():
            self.last_steps[kind] = step
            self.logged_path.write_text(json.dumps({"run_id": self.run_id, "last_steps": self.last_steps}))
            self.tracker.log(metrics, step)

    def close(self) -> None:
        """Close the tracker."""
        tracker, self.tracker = self.tracker, None
        with self.guarded():
            if tracker:
                tracker.close()

    abandon = close

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Close the tracker with a warning if the block fails."""
        try:
            yield
        except Exception as error:  # no exception of a library may end the run
            warn(f"report_to {self.name} failed ({type(error).__name__}: {error}); metrics.jsonl has all metrics")
            self.close()


def new_log() -> tuple[str, dict[str, int]]:
    """A new run id, and no logged steps."""
    return secrets.token_hex(4), {}


def read_logged(path: Path) -> tuple[str, dict[str, int]]:
    """The run id in a `tracker-NAME.json` and the last logged step of each kind of event; if damaged, a new log."""
    try:
        logged = read_json(path)
        return str(logged["run_id"]), {str(kind): int(step) for kind, step in logged["last_steps"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return new_log()
