"""Which parameters of a run are loaded: the final ones, or those of a checkpoint."""

from collections.abc import Set
from pathlib import Path
from typing import Any, Literal

from mlm_dist.config import Config
from mlm_dist.errors import UserError
from mlm_dist.run.checkpoint import find_damage, find_newest, list_checkpoints, load_checkpoint, load_tensors, step_of
from mlm_dist.run.metrics import read_events
from mlm_dist.run.run_dir import RunDir, not_a_run_directory

Step = int | Literal["best", "newest"]
"""A checkpoint of a run: that of a step, the one with the lowest validation loss, or the newest undamaged one."""


def load_parameters(run_dir: RunDir, config: Config, step: Step | None) -> tuple[dict[str, Any], int | None]:
    """Load the parameters of a run, and their step.

    Without `step`, those of `model.pth` if the run is finished, otherwise those of the newest undamaged checkpoint. If
    there is only one of the two, it is loaded. The step of a `model.pth` is unknown, None, if the run is not finished.

    Raises:
        UserError: there are no parameters, or none of this step, or they are damaged.
    """
    unfinished = not run_dir.done.exists() and list_checkpoints(run_dir.checkpoints)
    if step is not None or unfinished or not run_dir.model.exists():
        checkpoint = find_checkpoint(run_dir, "newest" if step is None else step)
        return load_checkpoint(checkpoint).get("model", {}), step_of(checkpoint)
    try:
        parameters = load_tensors(run_dir.model)
    except OSError as error:
        raise UserError(f"{run_dir.model}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(
            f"{run_dir.model} cannot be read as model parameters: it is damaged, or another program wrote it; "
            "restore a copy, or move it away to use the newest checkpoint"
        ) from error
    return parameters, config.train.max_iters if run_dir.done.exists() else None


def find_checkpoint(run_dir: RunDir, step: Step) -> Path:
    """The path of an undamaged checkpoint.

    Raises:
        UserError: there is none of this step, or it is damaged.
    """
    if step == "newest":
        if newest := find_newest(run_dir.checkpoints):
            return newest
        raise UserError(f"{run_dir.path} contains neither {run_dir.model.name} nor a checkpoint yet")
    checkpoints = {step_of(path): path for path in list_checkpoints(run_dir.checkpoints)}
    chosen = best_step(run_dir, checkpoints.keys()) if step == "best" else step
    if chosen not in checkpoints:
        kept = ", ".join(map(str, sorted(checkpoints))) or "no step"
        raise UserError(f"{run_dir.checkpoints} has no checkpoint of step {chosen}; it has those of {kept}")
    if damage := find_damage(checkpoints[chosen]):
        raise UserError(f"{checkpoints[chosen]} is damaged: {damage}")
    return checkpoints[chosen]


def steps_at_hand(run_dir: RunDir) -> list[int]:
    """The steps whose parameters a run has, in ascending order.

    Raises:
        UserError: it is not a run directory, or there are none.
    """
    if not run_dir.config.exists():
        raise not_a_run_directory(run_dir.path, run_dir.config.name)
    if not (steps := sorted(map(step_of, list_checkpoints(run_dir.checkpoints)))):
        raise UserError(f"{run_dir.checkpoints} has no checkpoint")
    return steps


def best_step(run_dir: RunDir, steps: Set[int]) -> int:
    """Of these steps, the one with the lowest validation loss.

    Raises:
        UserError: none of them was evaluated.
    """
    events = read_events(run_dir.metrics) if run_dir.metrics.exists() else []
    losses = {event["step"]: event["val_loss"] for event in events if event.get("val_loss") is not None}
    if not (evaluated := steps & losses.keys()):
        raise UserError(f"{run_dir.metrics} has no validation loss of a step with a checkpoint")
    return min(evaluated, key=lambda step: (losses[step], step))
