"""What a run has learned, read from its directory and checked: config, tokenizer and parameters."""

import dataclasses
from typing import NamedTuple

import torch

from mlm_dist.config import Config
from mlm_dist.config_reading import read_config
from mlm_dist.data.tokenizer import Tokenizer
from mlm_dist.errors import UserError
from mlm_dist.model.registry import check_parameters
from mlm_dist.run.checkpoint import list_checkpoints, read_record
from mlm_dist.run.parameters import load_final, load_parameters
from mlm_dist.run.record import differences
from mlm_dist.run.run_dir import RunDir, not_a_run_directory
from mlm_dist.source import Step


class Trained(NamedTuple):
    """What a run has learned.

    Attributes:
        config: of the run, with `model.vocab_size` set.
        tokenizer: of the run.
        parameters: the `state_dict` of its model, on the CPU. All values are finite.
        step: number of steps that the parameters were trained for; None if the run directory does not record it.
    """

    config: Config
    tokenizer: Tokenizer
    parameters: dict[str, torch.Tensor]
    step: int | None


def read_trained(run_dir: RunDir, step: Step | None, is_final: bool = False) -> Trained:
    """Read what a run has learned.

    Args:
        run_dir: the run directory.
        step: which parameters, as in `load_parameters`.
        is_final: those of `model.pth`, even if the run is unfinished.

    Raises:
        UserError: it is not a run directory, it has no trained parameters yet or none of this step, its files are
            damaged or were changed after the training, or a parameter is not finite.
    """
    config = read_run_config(run_dir)
    tokenizer = Tokenizer.load(run_dir.tokenizer)
    check_record(run_dir, config, tokenizer)
    parameters, found = (load_final(run_dir), None) if is_final else load_parameters(run_dir, config, step)
    try:
        check_parameters(parameters, config.model)
    except ValueError as error:
        raise UserError(
            f"the parameters in {run_dir.path} do not fit the model in {run_dir.config}: restore the original files"
        ) from error
    if not all(parameter.isfinite().all() for parameter in parameters.values()):
        raise UserError(f"the parameters in {run_dir.path} contain NaN or infinity: the training diverged")
    return Trained(config, tokenizer, parameters, found)


def read_run_config(run_dir: RunDir) -> Config:
    """Read the config of a run.

    Raises:
        UserError: it is not a run directory, or its config is damaged or does not have the vocabulary size.
    """
    if not run_dir.config.exists():
        raise not_a_run_directory(run_dir.path, run_dir.config.name)
    config = read_config(run_dir.config)
    if config.model.vocab_size is None:
        raise UserError(
            f"{run_dir.config}: model.vocab_size is null: set it to the value that the run was trained with"
        )
    return config


def check_record(run_dir: RunDir, config: Config, tokenizer: Tokenizer) -> None:
    """Compare config.yaml and the tokenizer of a run with the newest record in its checkpoints and milestones.

    Without this check, the parameters could be loaded with a different number of heads or different tokens, and
    the predictions would be wrong without an error.

    Raises:
        UserError: they differ.
    """
    folders = (run_dir.checkpoints, run_dir.milestones)
    records = (read_record(path) for folder in folders for path in list_checkpoints(folder))
    record = next(filter(None, records), None)
    shape = {f"model.{key}": value for key, value in dataclasses.asdict(config.model).items() if key != "dropout"}
    now = shape | {"corpus.tokenizer_sha256": tokenizer.fingerprint}
    if record and (changes := differences(record["fixed"], now)):
        raise UserError(
            f"{run_dir.config} or {run_dir.tokenizer} was changed after the training, which used {changes}: "
            f"restore the original file"
        )
