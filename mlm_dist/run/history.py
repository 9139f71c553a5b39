"""The metrics of runs, one column per metric."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mlm_dist.errors import UserError
from mlm_dist.run.metrics import Event, read_events
from mlm_dist.run.origin import Origin
from mlm_dist.run.run_dir import RunDir, not_a_run_directory

TRAINING = ("step", "loss", "lr", "grad_norm", "tokens", "tokens_per_second", "seconds")
EVALUATION = ("step", "val_loss", "val_accuracy")

Column = npt.NDArray[np.float64]


@dataclass(frozen=True)
class History:
    """The metrics of a run. A value that was not recorded or was not finite is NaN.

    Attributes:
        name: the name of the run in legends.
        training: the columns `TRAINING`, (N,) each.
        evaluations: the columns `EVALUATION`, (M,) each, with the `tokens` and `seconds` used so far.
        source_losses: the losses of the evaluations on the corpora of `init_from` that were measured, (M,) each.
    """

    name: str
    training: dict[str, Column]
    evaluations: dict[str, Column]
    source_losses: dict[str, Column] = field(default_factory=dict)


def read_history(metrics: Path, name: str) -> History:
    """Read a metrics.jsonl.

    Raises:
        UserError: it cannot be read, or has no events yet, or origin.json is damaged.
    """
    origin = Origin.read(RunDir(metrics.parent).origin)
    try:
        events = read_events(metrics)
        training = columns([event for event in events if "loss" in event], TRAINING)
        evaluated = [event for event in events if "val_loss" in event]
        evaluations = columns(evaluated, EVALUATION)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise not_a_run_directory(metrics.parent, metrics.name) from error
    except OSError as error:
        raise UserError(f"{metrics.parent} is not a run directory: {metrics.name}: {error.strerror}") from error
    if not len(training["step"]) and not len(evaluations["step"]):
        raise UserError(f"{metrics} has no events yet: neither a step nor an evaluation")
    for key in ("tokens", "seconds"):  # recorded for steps only; both are 0 at the start of a run
        steps, used = np.append(0, training["step"]), np.append(0, training[key])
        evaluations[key] = np.interp(evaluations["step"], steps, used)
    return History(name, training, evaluations, source_losses(evaluated, origin) if origin else {})


def read_histories(runs: Sequence[Path]) -> list[History]:
    """Read the metrics of run directories, each under the shortest name that distinguishes it from the others.

    Raises:
        UserError: the metrics of a run cannot be read or have no events yet, or a run is given twice.
    """
    names = shortest_names(runs)
    return [read_history(RunDir(run).metrics, name) for run, name in zip(runs, names, strict=True)]


def columns(events: list[Event], keys: tuple[str, ...]) -> dict[str, Column]:
    """The values of events, as one column per key."""
    return {key: np.array([event.get(key) for event in events], dtype=np.float64) for key in keys}


def source_losses(evaluated: list[Event], origin: Origin) -> dict[str, Column]:
    """The losses on the corpora of the source, as `History.source_losses`, by their paths."""
    recorded = {key for event in evaluated for key in event}
    losses = {}
    for path, (folder, _) in origin.corpora.items():
        # The folder if a corpus of the run itself has this path, see `watch_source_corpora`.
        keys = [key for key in (f"val_loss/{folder}", f"val_loss/{path}") if key in recorded]
        if keys:
            losses[path] = columns(evaluated, (keys[0],))[keys[0]]
    return losses


def shortest_names(runs: Sequence[Path]) -> list[str]:
    """Name runs by their folders, with as many parent folders as are needed to distinguish them.

    Raises:
        UserError: a run is given twice.
    """
    paths = [run.resolve() for run in runs]
    if twice := next((run for run, path in zip(runs, paths, strict=True) if paths.count(path) > 1), None):
        raise UserError(f"{twice} is given twice")
    return [str(shortest_suffix(path, paths)) for path in paths]


def shortest_suffix(path: Path, paths: list[Path]) -> Path:
    """The shortest sequence of last folders of a path that no other path ends with."""
    suffixes = (path.parts[-length:] for length in range(1, len(path.parts)))
    return next((Path(*end) for end in suffixes if sum(other.parts[-len(end) :] == end for other in paths) == 1), path)
