"""The start of a run with `init_from`: trained parameters, or, with `branch`, the whole state of another run."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from mlm_dist.config import Config, ModelConfig
from mlm_dist.data.tokenizer import Tokenizer
from mlm_dist.errors import UserError
from mlm_dist.exported_shape import read_exported_shape
from mlm_dist.model.growth import extend_vocabulary, fit_positions
from mlm_dist.model.registry import check_parameters
from mlm_dist.run.checkpoint import list_checkpoints
from mlm_dist.run.origin import Origin, digest
from mlm_dist.run.record import ORIGIN_SHA256
from mlm_dist.run.run_dir import RunDir
from mlm_dist.run.trained import read_run_config, read_trained
from mlm_dist.source import SHARED, Source
from mlm_dist.training.branch import branch
from mlm_dist.training.source_corpora import find_corpora, watch_source_corpora
from mlm_dist.training.trainer import Trainer

POSITIONS = "position_embedding.weight"


class Weights(NamedTuple):
    """Trained parameters to start from.

    Attributes:
        model: the shape of their model.
        tokenizer: the tokenizer that they were trained with.
        parameters: the `state_dict` of their model, on the CPU.
        step: the number of steps that they were trained for; None if it is not known.
    """

    model: ModelConfig
    tokenizer: Tokenizer
    parameters: dict[str, torch.Tensor]
    step: int | None = None


Loaded = tuple[int | None, dict[str, torch.Tensor]]
"""The step of a source, and its parameters before they were fitted to the run."""

ReadExported = Callable[[Path], Weights]
"""Reads a folder that `export` wrote."""


def check_source(config: Config, run_dir: RunDir) -> int:
    """Check what can be checked of the `init_from` of a new run without its parameters.

    Returns:
        The vocabulary size of the source; 0 if the run has none, or does not need it again.

    Raises:
        UserError: the run cannot start from it.
    """
    if config.init_from is None or list_checkpoints(run_dir.checkpoints):
        return 0
    source = Source.parse(config.init_from)
    if config.branch and (source.is_exported or source.is_final):
        raise UserError(
            f"branch: true needs a checkpoint, with the state of the optimizer: give init_from RUN@STEP instead of "
            f"{source.name}"
        )
    model = source_model(source)
    theirs, ours = dataclasses.asdict(model), dataclasses.asdict(config.model)
    for key in SHARED:
        if ours[key] != theirs[key]:
            raise UserError(
                f"model.{key} is {ours[key]}, but {source.folder} has {theirs[key]}: remove the key, or set it to that"
            )
    if config.model.vocab_size is not None and config.model.vocab_size < model.entries:
        raise UserError(
            f"model.vocab_size {config.model.vocab_size} is smaller than the {model.entries} of {source.folder}: "
            f"remove the key"
        )
    return model.entries


def source_model(source: Source) -> ModelConfig:
    """The shape of the model of a source.

    Raises:
        UserError: its config is damaged.
    """
    return read_exported_shape(source.folder) if source.is_exported else read_run_config(RunDir(source.folder)).model


def initialize(trainer: Trainer, read_exported: ReadExported) -> None:
    """Start from what `init_from` names, unless the run has checkpoints. All ranks call this.

    A run with checkpoints does not need its source again.

    Raises:
        UserError: the source is damaged, does not fit the run, or is not what the run started from before.
    """
    run_dir, init_from = trainer.run_dir, trainer.config.init_from
    if init_from is None:
        return
    with trainer.processes.raise_on_all_ranks():
        origin = Origin.read(run_dir.origin)
    if not trainer.processes.on_rank_zero(lambda: list_checkpoints(run_dir.checkpoints)):
        before, origin = origin, load_source(trainer, Source.parse(init_from), read_exported)
        if before and (before.name, before.sha256) != (origin.name, origin.sha256):
            raise UserError(
                f"{init_from} has changed since {run_dir.path} was started from it: restore it, or give another run_dir"
            )
    if origin:
        trainer.origin = origin
        trainer.record["fixed"][ORIGIN_SHA256] = origin.sha256
        watch_source_corpora(trainer, origin)


def load_source(trainer: Trainer, source: Source, read_exported: ReadExported) -> Origin:
    """Load a source into a trainer.

    Raises:
        UserError: on all ranks: the source is damaged, or does not fit the run.
    """
    processes, is_branch = trainer.processes, trainer.config.branch
    with processes.raise_on_all_ranks():
        step, parameters = branch(trainer, source) if is_branch else load_weights(trainer, source, read_exported)
        sha256 = digest(parameters)
    if len(set(processes.all_gather(sha256))) > 1:
        raise UserError(f"init_from {source.name}: the machines of this run read different parameters from it")
    is_new_text = not (is_branch or source.is_exported)
    corpora = processes.on_rank_zero(lambda: find_corpora(source)) if is_new_text else {}
    return Origin(source.name, step, sha256, corpora)


def load_weights(trainer: Trainer, source: Source, read_exported: ReadExported) -> Loaded:
    """Load the parameters of a source into a trainer.

    Raises:
        UserError: the source is damaged, or does not fit the run.
    """
    weights = read_weights(source, read_exported)
    trainer.state.start_from(fit(weights, trainer))
    return weights.step, weights.parameters


def read_weights(source: Source, read_exported: ReadExported) -> Weights:
    """Read trained parameters.

    Raises:
        UserError: the source is damaged, or has no parameters of this step.
    """
    if source.is_exported:
        return read_exported(source.folder)
    trained = read_trained(RunDir(source.folder), source.step, source.is_final)
    return Weights(trained.config.model, trained.tokenizer, trained.parameters, trained.step)


def fit(weights: Weights, trainer: Trainer) -> dict[str, torch.Tensor]:
    """Fit parameters to the block size and the vocabulary of a run.

    Raises:
        UserError: they do not fit its corpora or its model.
    """
    model, parameters = trainer.config.model, weights.parameters
    corpus, name = trainer.corpora[0], trainer.config.init_from
    if not trainer.tokenizer.extends(weights.tokenizer):
        raise UserError(
            f"{corpus.folder} has another tokenizer ({trainer.tokenizer.name}) than {name} ({weights.tokenizer.name}): "
            f"prepare its texts again with --tokenizer {Source.parse(str(name)).folder}, or --extend to add tokens"
        )
    if trainer.tokenizer.vocab_size > weights.tokenizer.vocab_size or model.entries != weights.model.entries:
        pieces = trainer.tokenizer.pieces_of_new(weights.tokenizer)
        parameters = extend_vocabulary(parameters, pieces, model.entries)
    if weights.model.block_size != model.block_size and POSITIONS in parameters:
        parameters = parameters | {POSITIONS: fit_positions(parameters[POSITIONS], model.block_size)}
    try:
        check_parameters(parameters, model)
    except ValueError as error:
        raise UserError(f"the parameters of {name} do not fit the model of this run: {error}") from error
    return parameters
