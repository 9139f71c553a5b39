"""A trained model as a folder that transformers reads.

config.json            its shape
model.safetensors      its weights
tokenizer.json         its tokenizer
tokenizer_config.json  the roles of the special tokens
README.md              the model card
"""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save

from mlm_dist.files import new_folder
from mlm_dist.huggingface.megatron_bert import convert_weights, describe_model
from mlm_dist.huggingface.model_card import write_card
from mlm_dist.huggingface.tokenizer_file import convert_tokenizer, describe_tokenizer
from mlm_dist.inference.model import TrainedModel


def export_model(model: TrainedModel, out: Path) -> None:
    """Write a model into the folder `out`, which must not exist yet. It is there when it is whole.

    Args:
        model: on the CPU.
        out: the folder.

    Raises:
        UserError: `out` exists or cannot be written, or the model's tokenizer cannot be exported.
    """
    shape = model.config.model
    with new_folder(out) as folder:
        tokenizer = convert_tokenizer(model.tokenizer)
        (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")
        write_json(describe_tokenizer(shape.block_size), folder / "tokenizer_config.json")
        write_json(describe_model(shape, model.tokenizer), folder / "config.json")
        card = write_card(model, out.absolute().name)
        # A folder's name, or what a run recorded of its machine, need not be text.
        (folder / "README.md").write_text(card, encoding="utf-8", errors="backslashreplace")
        weights = convert_weights(model.encoder.state_dict(), shape)
        # transformers asks who wrote the tensors: "pt" is torch.
        (folder / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))


def write_json(content: dict[str, Any], file: Path) -> None:
    """Write JSON for people to read, too."""
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
