"""Averaging the parameters of the last checkpoints and milestones of a run into a run directory.

The directory has what the verbs load: config.yaml, the tokenizer and model.pth; metrics.jsonl and machine.json of the
run, for plots; and averaged.json. It has no checkpoint, so training refuses to continue it, and no DONE, so that no
validation loss in the metrics is taken for that of the mean.
"""

import dataclasses
from pathlib import Path

import torch

from mlm_dist.errors import UserError
from mlm_dist.files import new_folder, read_bytes, refuse_existing
from mlm_dist.inference.model import TrainedModel
from mlm_dist.model.registry import check_parameters
from mlm_dist.run.averaged import write_average
from mlm_dist.run.checkpoint import load_checkpoint, model_parameters
from mlm_dist.run.parameters import undamaged_steps
from mlm_dist.run.run_dir import RunDir


def average_parameters(run: Path, last: int, out: Path) -> list[int]:
    """Write the mean of the parameters of the last steps that have a checkpoint or milestone, and return these steps.

    The mean is computed in fp64 and stored in fp32. The folder `out` appears once it is complete.

    Raises:
        UserError: as `mlm_dist.average`.
    """
    if last < 1:
        raise UserError(f"last is {last}: it must be at least 1")
    refuse_existing(out)
    paths = undamaged_steps(RunDir(run))
    if len(paths) < last:
        steps = ", ".join(map(str, paths))
        raise UserError(f"{run} has undamaged checkpoints and milestones of {len(paths)} steps, not {last}: {steps}")
    paths = dict(list(paths.items())[-last:])
    model = TrainedModel(run, torch.device("cpu"), [*paths][-1])  # checks config.yaml and the tokenizer
    model.encoder.load_state_dict(mean_parameters(list(paths.values()), model))
    try:
        files = [file for file in (model.run_dir.metrics, model.run_dir.machine) if file.exists()]
        copies = {file.name: read_bytes(file) for file in files}
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from error
    with new_folder(out) as folder:
        averaged = RunDir(folder)
        config = dataclasses.replace(model.config, run_dir=str(out))
        averaged.config.write_text(config.to_yaml(), encoding="utf-8")
        model.tokenizer.save(averaged.tokenizer)
        for name, content in copies.items():
            (folder / name).write_bytes(content)
        write_average(averaged.averaged, run, paths)
        averaged.write_model(model.encoder.state_dict())
    return [*paths]


def mean_parameters(paths: list[Path], model: TrainedModel) -> dict[str, torch.Tensor]:
    """The mean of the parameters of checkpoints and milestones, in fp32.

    Raises:
        UserError: they do not fit the model.
    """
    totals: dict[str, torch.Tensor] = {}
    for path in paths:
        parameters = model_parameters(load_checkpoint(path))
        try:
            check_parameters(parameters, model.config.model)
        except ValueError as error:
            raise UserError(f"{path} does not fit the model in {model.run_dir.config}") from error
        totals = {name: totals.get(name, 0) + value.double() for name, value in parameters.items()}
    return {name: (total / len(paths)).float() for name, total in totals.items()}
