"""A branch: another run is continued in a new run directory, with its parameters, optimizers and step."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mlm_dist.config import Config, OptimConfig
from mlm_dist.errors import UserError
from mlm_dist.output import print_log
from mlm_dist.run.checkpoint import read_record, step_of
from mlm_dist.run.parameters import find_checkpoint
from mlm_dist.run.record import differences
from mlm_dist.run.run_dir import RunDir
from mlm_dist.source import CHECKPOINTS, Source
from mlm_dist.training.resume import load
from mlm_dist.training.schedule import decay_start, learning_rate
from mlm_dist.training.trainer import Trainer

OWN = ("init_from", "branch")  # the keys in which a branch differs from its source


def branch(trainer: Trainer, source: Source) -> tuple[int | None, dict[str, torch.Tensor]]:
    """Load the state of another run, to continue it.

    Returns:
        Its step and its parameters.

    Raises:
        UserError: the other run is a different one, or its learning rate is already decaying.
    """
    path = find_checkpoint(RunDir(source.folder), "newest" if source.step is None else source.step)
    if path.parent.name != CHECKPOINTS:
        raise UserError(f"{path} has only parameters: a branch needs a checkpoint, with the state of the optimizer")
    record = read_record(path)
    if record:
        ours = {key: value for key, value in trainer.record["fixed"].items() if key.split(".")[0] not in OWN}
        if changes := differences(record["fixed"], ours):
            raise UserError(f"{path} was trained with {changes}: a branch needs the same values")
        check_schedule(path, record["adjustable"], trainer.config)
    load(trainer, path, check_corpus=not record)
    trainer.saved_step = 0  # the branch has no checkpoint of its own yet
    changes = differences(trainer.record["adjustable"], record["adjustable"]) if record else ""
    if changes and trainer.processes.is_rank_zero:
        print_log(f"the branch of {path} has {changes}")
    return trainer.state.step, trainer.state.encoder.state_dict()


def check_schedule(path: Path, adjustable: Mapping[str, Any], config: Config) -> None:
    """Raise `UserError` if the learning rate has begun to decay at a checkpoint, and a branch would raise it again."""
    step, max_iters = step_of(path), adjustable["train.max_iters"]
    names = (field.name for field in dataclasses.fields(OptimConfig))
    before = OptimConfig(**{name: adjustable[f"optim.{name}"] for name in names if f"optim.{name}" in adjustable})
    start = decay_start(max_iters, before)
    rates = [learning_rate(step, max_iters, before), learning_rate(step, config.train.max_iters, config.optim)]
    if step > start and rates[0] != rates[1]:
        raise UserError(
            f"{path}: the learning rate of this run decays from step {start} on, and a branch would raise it again: "
            f"give an earlier step of a run with optim.schedule wsd or constant"
        )
