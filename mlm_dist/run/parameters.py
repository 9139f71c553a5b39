"""Which parameters of a run are loaded: the final ones, or those of a checkpoint or milestone."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlm_dist.config import Config
from mlm_dist.errors import RunError, UserError
from mlm_dist.output import warn
from mlm_dist.run.checkpoint import (
    find_damage,
    find_newest,
    list_checkpoints,
    load_checkpoint,
    load_tensors,
    model_parameters,
    step_of,
)
from mlm_dist.run.metrics import read_events, validation_losses
from mlm_dist.run.run_dir import MAKE_ROOM, RunDir, not_a_run_directory
from mlm_dist.source import Step


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
        return model_parameters(load_checkpoint(checkpoint)), step_of(checkpoint)
    recorded, last = run_dir.final_step(), config.train.max_iters if run_dir.done.exists() else None
    return load_final(run_dir), last if recorded is None else recorded


def load_final(run_dir: RunDir) -> dict[str, Any]:
    """Load `model.pth`.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        return load_tensors(run_dir.model)
    except OSError as error:
        raise UserError(f"{run_dir.model}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(
            f"{run_dir.model} cannot be read as model parameters: it is damaged, or another program wrote it; "
            "restore a copy, or move it away to use the newest checkpoint"
        ) from error


def find_checkpoint(run_dir: RunDir, step: Step) -> Path:
    """The path of an undamaged checkpoint or milestone; of a step that has both, of the checkpoint.

    Instead of a damaged newest or best one, the next one is chosen, with a warning.

    Raises:
        UserError: there is none of this step, or it is damaged.
    """
    if step == "newest":
        if newest := find_newest(run_dir.checkpoints):
            return newest
        raise UserError(f"{run_dir.path} contains neither {run_dir.model.name} nor a checkpoint yet")
    if step == "best":
        events = read_events(run_dir.metrics) if run_dir.metrics.exists() else []
        if best := best_undamaged(run_dir, validation_losses(events)):
            return best
        raise UserError(f"{run_dir.metrics} has no validation loss of a step with a checkpoint")
    saved = saved_steps(run_dir)
    if step not in saved:
        kept = ", ".join(str(step_of(path)) for path in reversed(list_checkpoints(run_dir.checkpoints))) or "no step"
        marked = ", ".join(str(step_of(path)) for path in reversed(list_checkpoints(run_dir.milestones)))
        milestones = f", and milestones of {marked}" if marked else ""
        raise UserError(f"{run_dir.checkpoints} has no checkpoint of step {step}; it has those of {kept}{milestones}")
    damages = {path: find_damage(path) for path in saved[step]}
    if paths := [path for path, damage in damages.items() if damage is None]:
        return paths[0]
    raise UserError(f"{saved[step][0]} is damaged: {damages[saved[step][0]]}")


def saved_steps(run_dir: RunDir) -> dict[int, list[Path]]:
    """The steps of a run that have a checkpoint or a milestone, ascending, each with the paths of these.

    Raises:
        UserError: it is not a run directory.
    """
    if not run_dir.config.exists():
        raise not_a_run_directory(run_dir.path, run_dir.config.name)
    paths = sorted([*list_checkpoints(run_dir.checkpoints), *list_checkpoints(run_dir.milestones)], key=step_of)
    return {step: list(group) for step, group in itertools.groupby(paths, step_of)}


def steps_at_hand(run_dir: RunDir) -> list[int]:
    """The steps that have a checkpoint or a milestone, ascending.

    Raises:
        UserError: it is not a run directory, or there are none.
    """
    if not (saved := saved_steps(run_dir)):
        raise UserError(f"{run_dir.path} has no checkpoint and no milestone")
    return list(saved)


def undamaged_steps(run_dir: RunDir) -> dict[int, Path]:
    """An undamaged checkpoint or milestone of each step, ascending, with a warning for each damaged one.

    Raises:
        UserError: there is none, or this is not a run directory.
    """
    found = {step_of(path): path for path in undamaged(saved_steps(run_dir).values())}
    if not found:
        raise UserError(f"{run_dir.path} has no undamaged checkpoint or milestone")
    return found


def best_undamaged(run_dir: RunDir, val_losses: Mapping[int, float]) -> Path | None:
    """The undamaged checkpoint or milestone with the lowest of these validation losses, the earliest of several.

    A warning is printed for each damaged one with a lower loss.

    Returns:
        None if no undamaged one has a loss.

    Raises:
        UserError: this is not a run directory.
    """
    saved = saved_steps(run_dir)
    steps = sorted(saved.keys() & val_losses.keys(), key=lambda step: (val_losses[step], step))
    return next(undamaged(saved[step] for step in steps), None)


def undamaged(steps: Iterable[Sequence[Path]]) -> Iterator[Path]:
    """The first undamaged path of each step that has one, with a warning for each damaged one before it."""
    for paths in steps:
        for path in paths:
            damage = find_damage(path)
            if damage is None:
                yield path
                break
            warn(f"{path} is skipped: {damage}")


def best_parameters(run_dir: RunDir, val_losses: Mapping[int, float]) -> tuple[int, dict[str, Any]]:
    """The parameters with the lowest of these validation losses that are saved undamaged, and their step.

    Raises:
        RunError: no evaluated parameters could be saved.
    """
    best = best_undamaged(run_dir, val_losses)
    if best is None:
        raise RunError(f"{run_dir.path} has no checkpoint of an evaluated step: {MAKE_ROOM}")
    return step_of(best), model_parameters(load_checkpoint(best, mapped=True))
