"""An encoder with the head of transformers' `MegatronBertForSequenceClassification`, which computes the same logits."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
import torch
from safetensors.torch import save
from torch import nn

from mlm_dist.config import ModelConfig
from mlm_dist.data.tokenizer import Tokenizer
from mlm_dist.data.tokenizer_json import TOKENIZER_CONFIG, TOKENIZER_JSON
from mlm_dist.errors import UserError
from mlm_dist.exported_shape import CONFIG_JSON, MODEL_TYPE, WEIGHTS
from mlm_dist.huggingface.export import check_exportable, write_json
from mlm_dist.huggingface.megatron_bert import HEAD, convert_parameters, describe_model
from mlm_dist.huggingface.tokenizer_file import describe_tokenizer
from mlm_dist.model.encoder import Encoder
from mlm_dist.model.initial import INITIAL_STD
from mlm_dist.model.masked_model import padded_documents

SCORE = "score"  # the name of the only output of a model of scores


class Classifier(nn.Module):
    """tanh of a linear layer on the state of the first token, then an output for each class, or one for the score."""

    def __init__(self, encoder: Encoder, outputs: int) -> None:
        super().__init__()
        width = encoder.config.embedding_dim
        self.encoder = encoder
        self.pooler = nn.Linear(width, width)
        self.classifier = nn.Linear(width, outputs)
        for layer in (self.pooler, self.classifier):
            nn.init.normal_(layer.weight, std=INITIAL_STD)
            nn.init.zeros_(layer.bias)

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Compute the outputs: (B, T) ids, of which the first `lengths` (B,) are no padding -> (B, outputs)."""
        batch, length = tokens.shape
        documents = padded_documents(lengths, length)
        first = torch.zeros(batch, 1, dtype=torch.long, device=tokens.device)
        states = self.encoder.last_hidden_states(tokens, first, documents)[:, 0]
        out: torch.Tensor = self.classifier(torch.tanh(self.pooler(states)))
        return out

    def rescale_output(self, mean: float, deviation: float) -> None:
        """Let a model of scaled scores return scores."""
        with torch.no_grad():
            self.classifier.weight.mul_(deviation)
            self.classifier.bias.mul_(deviation).add_(mean)


def check_convertible(model: ModelConfig) -> None:
    """Raise `UserError` if `MegatronBertForSequenceClassification` lacks an option of a model."""
    check_exportable(model)
    if model.positions != "learned":
        raise UserError(
            f"transformers' {MODEL_TYPE}, which full fine-tuning saves, has no model.positions {model.positions}: give "
            f"--method frozen"
        )


def write_classifier(
    classifier: Classifier, classes: Sequence[str], tokenizer: Tokenizer, converted: tokenizers.Tokenizer, folder: Path
) -> None:
    """Write a folder that `AutoModelForSequenceClassification` and `AutoTokenizer` load.

    Args:
        classifier: the model.
        classes: the labels; empty: it predicts scores.
        tokenizer: of the encoder.
        converted: as `sequence_tokenizer` returns it.
        folder: to write into.
    """
    shape = classifier.encoder.config
    state = {name: value.cpu() for name, value in classifier.state_dict().items()}
    (folder / TOKENIZER_JSON).write_text(converted.to_str(pretty=True) + "\n", encoding="utf-8")
    write_json(describe_tokenizer(tokenizer, shape.block_size), folder / TOKENIZER_CONFIG)
    write_json(describe_classifier(shape, classes, tokenizer), folder / CONFIG_JSON)
    (folder / WEIGHTS).write_bytes(save(convert_classifier(state, shape), metadata={"format": "pt"}))


def describe_classifier(model: ModelConfig, classes: Sequence[str], tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of `config.json`."""
    labels = [*classes] or [SCORE]
    return describe_model(model, tokenizer) | {
        "architectures": ["MegatronBertForSequenceClassification"],
        "problem_type": "single_label_classification" if classes else "regression",
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
    }


def convert_classifier(state: dict[str, torch.Tensor], model: ModelConfig) -> dict[str, torch.Tensor]:
    """Convert the `state_dict` of a `Classifier` to the names of transformers."""
    body = {name.removeprefix("encoder."): value for name, value in state.items() if name.startswith("encoder.")}
    converted = convert_parameters(body, model)
    heads = {"pooler": "bert.pooler.dense", "classifier": "classifier"}
    return {name: value for name, value in converted.items() if not name.startswith(HEAD)} | {
        f"{target}.{kind}": state[f"{source}.{kind}"] for source, target in heads.items() for kind in ("weight", "bias")
    }
