"""Exporting a trained model to a folder that transformers can load.

config.json            the shape of the model
model.safetensors      its parameters
tokenizer.json         its tokenizer
tokenizer_config.json  the roles of the special tokens, the block size, and the pattern of the encoding
README.md              the model card

What can be added: model.onnx for ONNX (see onnx_file.py), and the files that sentence-transformers reads (see
sentence_files.py).
"""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from mlm_dist.config import ModelConfig
from mlm_dist.data.tokenizer_json import TOKENIZER_CONFIG, TOKENIZER_JSON
from mlm_dist.errors import UserError
from mlm_dist.exported_shape import ACTIVATIONS, CONFIG_JSON, ESM, MODEL_TYPE, WEIGHTS
from mlm_dist.files import new_folder, refuse_existing
from mlm_dist.huggingface import esm, megatron_bert
from mlm_dist.huggingface.model_card import Addition, write_card
from mlm_dist.huggingface.onnx_file import MODEL_ONNX, write_onnx
from mlm_dist.huggingface.sentence_files import describe_sentence_model
from mlm_dist.huggingface.tokenizer_file import convert_tokenizer, describe_tokenizer
from mlm_dist.inference.model import TrainedModel
from mlm_dist.model.encoder import as_encoder
from mlm_dist.run.parameters import undamaged_steps
from mlm_dist.run.run_dir import RunDir


def export_model(model: TrainedModel, out: Path, additions: Collection[Addition] = (), note: str = "") -> None:
    """Export a model to the folder `out`, which must not exist yet. The folder appears once it is complete.

    Args:
        model: on the CPU.
        out: the folder.
        additions: what else to write into it.
        note: a paragraph for the model card about what has changed the model since its run.

    Raises:
        UserError: `out` exists or cannot be written, the tokenizer cannot be exported, the metrics of the run are
            damaged, or what an addition needs is not installed.
    """
    with new_folder(out) as folder:
        write_model(model, folder, out.absolute().name, additions, note)


def export_all(run: Path, out: Path, additions: Collection[Addition] = ()) -> list[Path]:
    """Export every checkpoint and milestone of a run to `out`/step-00000500 etc., and return these folders.

    The folder `out`, which must not exist yet, appears once it is complete. Damaged checkpoints and milestones are left
    out, with a warning.

    Raises:
        UserError: as `export_model`, or the run has no undamaged checkpoint or milestone, or a parameter is not finite.
    """
    refuse_existing(out)
    names = {step: path.name for step, path in undamaged_steps(RunDir(run)).items()}
    with new_folder(out) as folder:
        for step, name in names.items():
            (folder / name).mkdir()
            model = TrainedModel(run, torch.device("cpu"), step)
            write_model(model, folder / name, f"{out.absolute().name}/{name}", additions)
    return [out / name for name in names.values()]


def write_model(model: TrainedModel, folder: Path, name: str, additions: Collection[Addition], note: str = "") -> None:
    """Write the files of an exported model, which has this name in its card, into a folder."""
    shape, encoder = model.config.model, as_encoder(model.encoder, "the export")
    check_exportable(shape)
    layout = esm if shape.positions == "rope" else megatron_bert
    tokenizer = convert_tokenizer(model.tokenizer)
    (folder / TOKENIZER_JSON).write_text(tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")
    write_json(describe_tokenizer(model.tokenizer, shape.block_size), folder / TOKENIZER_CONFIG)
    write_json(layout.describe_model(shape, model.tokenizer), folder / CONFIG_JSON)
    card = write_card(model, name, additions, note)
    # The folder's name and the run's machine record may contain characters that UTF-8 cannot encode.
    (folder / "README.md").write_text(card, encoding="utf-8", errors="backslashreplace")
    parameters = layout.convert_parameters(encoder.state_dict(), shape)
    # transformers reads from the metadata which framework wrote the tensors; "pt" is torch.
    (folder / WEIGHTS).write_bytes(save(parameters, metadata={"format": "pt"}))
    if "sentence_transformers" in additions:
        for file, content in describe_sentence_model(shape).items():
            (folder / file).parent.mkdir(exist_ok=True)
            write_json(content, folder / file)
    if "onnx" in additions:
        write_onnx(encoder, folder / MODEL_ONNX)


def check_exportable(model: ModelConfig) -> None:
    """Raise `UserError` if the model of transformers that is nearest to a model lacks one of its options."""
    options = ["model.qk_norm true"] if model.qk_norm else []
    if model.logit_softcap:
        options.append(f"model.logit_softcap {model.logit_softcap}")
    kind, activations = (ESM, ["gelu"]) if model.positions == "rope" else (MODEL_TYPE, list(ACTIVATIONS))
    if model.activation not in activations:
        options.append(f"model.activation {model.activation}")
    if options:
        raise UserError(
            f"this model cannot be exported: transformers' {kind}, which has positions like it, has no "
            f"{' and no '.join(options)}"
        )


def write_json(content: Any, file: Path) -> None:
    """Write a file of indented, human-readable JSON."""
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
