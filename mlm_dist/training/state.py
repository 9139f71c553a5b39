"""The state of a run, as a checkpoint stores it, and the result of a step."""

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from mlm_dist.data.masking import MaskedBatch
from mlm_dist.errors import UserError
from mlm_dist.model.masked_model import MaskedModel
from mlm_dist.model.registry import check_parameters
from mlm_dist.training.average import ParameterAverage
from mlm_dist.training.optim import check_state

VERSION = 2  # version 1 has no key for its version
LARGEST_SCALE = 2.0**127  # of fp32


class StepResult(NamedTuple):
    """The outcome of a step. Its tensors are on the device, so that the host need not wait for the step.

    Attributes:
        step: optimizer steps taken, including this one.
        batch: this rank's part of the global batch.
        loss: this rank's part of the loss, on its device. The parts of all ranks add up to the loss.
        grad_norm: (), of the global gradient before clipping, the same on all ranks. If it is not finite, the step was
            skipped: parameters and optimizers are unchanged.
        lr: the learning rate.
    """

    step: int
    batch: MaskedBatch
    loss: torch.Tensor
    grad_norm: torch.Tensor
    lr: float


@dataclass
class TrainState:
    """The state of a run between two steps.

    Rows, masks and learning rate are functions of the step, so the data has no state of its own.

    Attributes:
        encoder: the model that is trained.
        optimizers: the optimizers of its parameters.
        scaler: the scaler of fp16 gradients; disabled in other precisions.
        average: the average of the parameters; None without `optim.ema`.
        step: optimizer steps taken, including skipped ones.
        seconds: time spent in training, without evaluations and checkpoints.
        skipped_steps: number of consecutive skipped steps up to now.
    """

    encoder: MaskedModel
    optimizers: list[torch.optim.Optimizer]
    scaler: torch.amp.GradScaler
    average: ParameterAverage | None = None
    step: int = 0
    seconds: float = 0.0
    skipped_steps: int = 0

    @property
    def model(self) -> MaskedModel:
        """The model of the run, which is evaluated and written: with `optim.ema` the average, otherwise the encoder."""
        return self.average.model if self.average else self.encoder

    @property
    def max_bytes(self) -> int:
        """Upper bound on the size of a checkpoint, except a few kilobytes: parameters, two moments, and the average."""
        return (4 if self.average else 3) * self.parameter_bytes

    @property
    def parameter_bytes(self) -> int:
        """Size of the parameters, and of a milestone except a few kilobytes."""
        return sum(parameter.nbytes for parameter in self.encoder.parameters())

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values. The tensors are not copies: training changes them."""
        state = {
            "version": VERSION,
            "step": self.step,
            "seconds": self.seconds,
            "bad_steps": self.skipped_steps,
            "model": self.encoder.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
        }
        return state | {"ema": self.average.model.state_dict()} if self.average else state

    def start_from(self, parameters: Mapping[str, torch.Tensor]) -> None:
        """Load the parameters that training starts from."""
        self.encoder.load_state_dict(parameters)
        if self.average:
            self.average.model.load_state_dict(parameters)

    def milestone(self) -> dict[str, Any]:
        """What a milestone has of `state_dict`: the parameters of `model`."""
        return {"version": VERSION, "step": self.step, "model": self.model.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state from a checkpoint. The optimizers keep the settings of the config.

        Raises:
            UserError: the state has an unknown format version, lacks a key, or does not fit the model and the
                optimizers. The message continues a sentence that starts with the checkpoint path.
        """
        version = state.get("version", 1)
        if type(version) is not int or not 1 <= version <= VERSION:
            raise UserError(f"has format version {reprlib.repr(version)}, but this program reads 1 to {VERSION}")
        keys = self.state_dict().keys() - {"version"}
        if missing := sorted(keys - state.keys()):
            raise UserError(f"lacks {', '.join(missing)}: restore a copy of it, or delete it")
        try:
            self._load(state)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise UserError("does not fit the model and the optimizer: give another run_dir") from error

    def _load(self, state: dict[str, Any]) -> None:
        step, seconds, skipped_steps = state["step"], state["seconds"], state["bad_steps"]
        if not (type(step) is type(skipped_steps) is int and min(step, skipped_steps) >= 0):
            raise ValueError("a count is not a whole number")
        if not (type(seconds) is float and 0 <= seconds < math.inf):
            raise ValueError("the time is not a number of seconds")
        check_parameters(state["model"], self.encoder.config)
        self.encoder.load_state_dict(state["model"])
        if self.average:
            check_parameters(state["ema"], self.encoder.config)
            self.average.model.load_state_dict(state["ema"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            if not isinstance(saved, dict):  # torch would warn about indexing a tensor by a name
                raise TypeError("the state of an optimizer is not a dict")
            groups = optimizer.state_dict()["param_groups"]  # with the settings of the config, which may have changed
            check_state(optimizer, saved["state"])
            optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
        if not all(type(value) in (int, float) and 0 <= value < LARGEST_SCALE for value in state["scaler"].values()):
            raise ValueError("the gradient scale is not a finite number")
        if state["scaler"] and self.scaler.is_enabled():  # fp16 before and now
            self.scaler.load_state_dict(state["scaler"])
        self.step, self.seconds, self.skipped_steps = step, seconds, skipped_steps
