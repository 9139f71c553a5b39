"""The models that `model.name` can name, and how they are built and checked."""

from typing import Any

import torch

from mlm_dist.config import ModelConfig
from mlm_dist.errors import UserError
from mlm_dist.model.encoder import Encoder
from mlm_dist.model.masked_model import MaskedModel

MODELS: dict[str, type[MaskedModel]] = {"encoder": Encoder}
"""The classes that `model.name` can name. Each is built with a `ModelConfig`."""


def model_class(config: ModelConfig) -> type[MaskedModel]:
    """The class of a model.

    Raises:
        UserError: `model.name` is not the name of a model.
    """
    if config.name not in MODELS:
        raise UserError(f"model.name: there is no model {config.name}: choose one of {', '.join(MODELS)}")
    return MODELS[config.name]


def build_model(config: ModelConfig) -> MaskedModel:
    """Build a model with initial parameters.

    Raises:
        UserError: `model.name` is not the name of a model.
    """
    return model_class(config)(config)


def check_parameters(parameters: Any, config: ModelConfig) -> None:
    """Check that the names and shapes of parameters fit a config, without allocating its model.

    Raises:
        UserError: `model.name` is not the name of a model.
        ValueError: they belong to a model of a different shape, or are not tensors of real numbers.
    """
    if not isinstance(parameters, dict) or not all(map(is_plain, parameters.values())):
        raise ValueError("they are not a mapping of names to tensors")
    try:
        # By formula for the default model, so that a config with too many blocks to build is refused at once.
        count = model_class(config).count_parameters(config)
        expected = state_on_meta(config) if count <= sum(map(torch.numel, parameters.values())) else None
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:  # sizes that no tensor can have
        raise ValueError("no model can have this shape") from error
    if expected is None:
        raise ValueError(f"a model of this shape has {count} parameters, which are more")
    shapes = {name: parameter.shape for name, parameter in parameters.items()}
    if shapes != {name: parameter.shape for name, parameter in expected.items()}:
        raise ValueError("their names or shapes are different")


def state_on_meta(config: ModelConfig) -> dict[str, torch.Tensor]:
    """The `state_dict` of a model, with tensors that have a shape but no memory."""
    with torch.device("meta"):
        return build_model(config).state_dict()


def is_plain(value: Any) -> bool:
    """Whether a value is a dense tensor of real numbers on the CPU, like parameters and optimizer state."""
    if not isinstance(value, torch.Tensor):
        return False
    return value.is_floating_point() and value.layout == torch.strided and value.device.type == "cpu"
