"""Reading an exported folder: the inverse of `export`, also after transformers has fine-tuned and saved the model."""

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from mlm_dist.config import ModelConfig
from mlm_dist.data.preparation import SAMPLE_TEXT
from mlm_dist.data.tokenizer import Tokenizer
from mlm_dist.data.tokenizer_json import read_exported_tokenizer
from mlm_dist.errors import UserError
from mlm_dist.exported_shape import WEIGHTS, read_exported_shape
from mlm_dist.files import read_bytes
from mlm_dist.huggingface.esm import restore_name
from mlm_dist.huggingface.folding import fold_body, fold_head, is_identity
from mlm_dist.huggingface.megatron_bert import FINAL_NORM, HEAD, TRANSFORM, convert_parameters, restore_parameters
from mlm_dist.model.encoder import Encoder
from mlm_dist.model.registry import state_on_meta
from mlm_dist.output import warn

BODY = "bert."

# Tensors of the body that are no parameters of its hidden states: for classification, of earlier transformers, of ESM.
UNUSED = tuple(
    f"{BODY}{part}" for part in ("pooler.", "embeddings.position_ids", "contact_head.", "rotary_embeddings.")
)

# Fractions below this are not worth a warning.
NEGLIGIBLE = 1e-4

# The states that `fold_head` needs: at every seventh of some tokens, near the usual mask rate.
SAMPLE_TOKENS = 8192
MASKED_TOKEN = 7

# Files with parameters in other formats -> why they are not read.
OTHER_WEIGHTS = {
    f"{WEIGHTS}.index.json": "the parameters are in several files: save them with a larger max_shard_size",
    "pytorch_model.bin": "there is only pytorch_model.bin: load the model in transformers and save it with safetensors",
}


class Exported(NamedTuple):
    """An exported model.

    Attributes:
        model: its shape, with the vocabulary size.
        tokenizer: its tokenizer.
        parameters: float32 tensors on the CPU, by their names in `Encoder.state_dict()`.
    """

    model: ModelConfig
    tokenizer: Tokenizer
    parameters: dict[str, torch.Tensor]


def read_exported(folder: Path) -> Exported:
    """Read an exported folder. If transformers has not changed the model, every parameter has the exported bits.

    What fine-tuning has moved in parameters that an `Encoder` lacks is folded into others (see `folding`). A warning
    says where this is not exact, and whether the folder lacks an output layer.

    Raises:
        UserError: a file is missing or damaged, the model cannot be an `Encoder`, or a parameter is not finite.
    """
    model, tokenizer = read_exported_shape(folder), read_exported_tokenizer(folder)
    if tokenizer.vocab_size > model.entries:
        raise UserError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} ids, the model {model.entries}: enlarge the model in "
            f"transformers with resize_token_embeddings"
        )
    try:
        parameters = select(read_tensors(folder, model), model)
    except ValueError as error:
        raise UserError(f"{folder / WEIGHTS}: {error}") from error
    if (lost := fold_body(parameters, model)) > NEGLIGIBLE:
        warn(f"{folder}: biases of queries or keys cannot be folded into this model: up to {lost:.2%} of them is lost")
    if not has_head(parameters):
        parameters |= new_head(parameters, model)
        warn(f"{folder}: there is no output layer for masked tokens: its LayerNorm and its bias are new")
    elif not is_identity(parameters, model):
        drift = fold_head(parameters, model, sample_states(restore_parameters(parameters, model), model, tokenizer))
        if drift > NEGLIGIBLE:
            warn(
                f"{folder}: fine-tuning has changed the layer before the output layer, which this model lacks: "
                f"{drift:.2%} of its output is lost, so the loss starts slightly higher"
            )
    return Exported(model, tokenizer, restore_parameters(parameters, model))


def read_tensors(folder: Path, model: ModelConfig) -> dict[str, torch.Tensor]:
    """The tensors of a folder by the names of `MegatronBertForMaskedLM`, those of the body with the prefix `bert.`.

    Raises:
        UserError: there is no file of safetensors.
        ValueError: it is damaged.
    """
    file = folder / WEIGHTS
    try:
        tensors = load(read_bytes(file))
    except OSError as error:
        other = next((reason for name, reason in OTHER_WEIGHTS.items() if (folder / name).exists()), error.strerror)
        raise UserError(f"{file}: {other}") from error
    except SafetensorError as error:
        raise ValueError(f"it is damaged: {error}") from error
    if model.positions == "rope":
        tensors = {restore_name(name): tensor for name, tensor in tensors.items()}
    if not any(name.startswith(BODY) for name in tensors):  # saved from `AutoModel`
        tensors = {f"{BODY}{name}": tensor for name, tensor in tensors.items()}
    # transformers writes one of these two if they are the same.
    biases = (f"{HEAD}.bias", f"{HEAD}.decoder.bias")
    found = next((tensors[name] for name in biases if name in tensors), None)
    if found is not None:
        tensors = dict.fromkeys(biases, found) | tensors
    return tensors


def select(tensors: dict[str, torch.Tensor], model: ModelConfig) -> dict[str, torch.Tensor]:
    """Check tensors, and return those that `convert_parameters` has too, in float32. The head may be missing.

    Raises:
        ValueError: a tensor of the body is missing or unknown, has another shape, is not of real numbers, or has one
            that is not finite; or there is no head, and the output layer is not the token embedding.
    """
    expected = expected_tensors(tensors, model)
    if not has_head(tensors):
        if not model.tie_embeddings:
            raise ValueError("it has no output layer for masked tokens, and its embeddings are not tied")
        expected = {name: tensor for name, tensor in expected.items() if name.startswith(BODY)}
    for name in sorted(tensors):
        if name.startswith(BODY) and name not in expected and not name.startswith(UNUSED):
            raise ValueError(f"{name} is not a parameter of an exported model")
    selected = {}
    for name, parameter in expected.items():
        if name not in tensors:
            raise ValueError(f"{name} is missing")
        found = tensors[name]
        if found.shape != parameter.shape:
            raise ValueError(f"{name} has the shape {list(found.shape)}, not {list(parameter.shape)} as in config.json")
        if not found.is_floating_point():
            raise ValueError(f"{name} is of type {found.dtype}: save the model without quantization")
        selected[name] = found.float()
        if not selected[name].isfinite().all():
            raise ValueError(f"{name} contains NaN or infinity")
    return selected


def expected_tensors(tensors: dict[str, torch.Tensor], model: ModelConfig) -> dict[str, torch.Tensor]:
    """The tensors of an export of this shape, without memory.

    Raises:
        ValueError: the shape needs more parameters than there are.
    """
    size = sum(map(torch.numel, tensors.values()))
    try:
        if Encoder.count_in_hidden_matrices(model) <= size:  # else it might have more blocks than can be built
            with torch.device("meta"):
                return convert_parameters(state_on_meta(model), model)
    except (RuntimeError, TypeError, OverflowError) as error:
        raise ValueError("no model can have the shape in config.json") from error
    raise ValueError(f"it has {size} parameters, fewer than the shape in config.json needs")


def has_head(tensors: dict[str, torch.Tensor]) -> bool:
    """Whether there is an output layer for masked tokens."""
    return any(name.startswith(HEAD) for name in tensors)


def new_head(parameters: dict[str, torch.Tensor], model: ModelConfig) -> dict[str, torch.Tensor]:
    """The parameters of the head that `restore_parameters` needs: the final LayerNorm of the body, and a bias of 0."""
    norm = {f"{TRANSFORM}.LayerNorm.{kind}": parameters[f"{FINAL_NORM}.{kind}"] for kind in ("weight", "bias")}
    return norm | {f"{HEAD}.bias": torch.zeros(model.entries)}


def sample_states(parameters: dict[str, torch.Tensor], model: ModelConfig, tokenizer: Tokenizer) -> torch.Tensor:
    """The normalized outputs of the last block at masked tokens of the sample text: (N, C).

    Args:
        parameters: of an `Encoder`.
        model: their shape.
        tokenizer: their tokenizer.
    """
    with torch.device("meta"):  # so that no random numbers are drawn for initial parameters
        encoder = Encoder(model)
    encoder.load_state_dict(parameters, assign=True)
    ids = torch.from_numpy(tokenizer.encode(SAMPLE_TEXT.read_text(encoding="utf-8")).astype("int64"))[:SAMPLE_TOKENS]
    length = min(model.block_size, len(ids))
    rows = ids[: len(ids) // length * length].view(-1, length)
    rows[:, ::MASKED_TOKEN] = tokenizer.mask_id
    with torch.no_grad():
        return encoder.eval().last_hidden_states(rows)[:, ::MASKED_TOKEN].flatten(0, 1)
