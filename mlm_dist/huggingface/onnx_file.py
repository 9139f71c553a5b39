"""Exporting an encoder as an ONNX file, which onnxruntime and other engines run without torch.

Inputs and output have the names that transformers gives them, and any batch size B and length T up to `block_size`:

input_ids       (B, T), int64
attention_mask  (B, T), int64: 1 for tokens, 0 for the padding after them
logits          (B, T, V), float32. Those of tokens do not depend on the padding.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from mlm_dist.errors import UserError
from mlm_dist.model.encoder import Encoder

MODEL_ONNX = "model.onnx"
LOGITS = "logits"
DIMENSIONS = {0: "batch", 1: "length"}


class PaddedEncoder(nn.Module):
    """An encoder of padded rows."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Compute logits: (B, T) and (B, T) -> (B, T, V)."""
        # The padding of a row is a document of its own, which tokens do not attend to.
        return self.encoder.logits(self.encoder.encode(input_ids, documents=1 - attention_mask))


def write_onnx(encoder: Encoder, file: Path) -> None:
    """Write an encoder in evaluation mode as an ONNX file. Above 2 GB, the parameters are in a file beside it.

    Raises:
        UserError: onnxscript is not installed.
        OSError: the file cannot be written.
    """
    try:
        import onnxscript  # noqa: F401, PLC0415 (an extra, in which torch's exporter is written)
        from onnx_ir.passes.common import ClearMetadataAndDocStringPass  # noqa: PLC0415
    except ImportError as error:
        raise UserError("--onnx needs onnxscript: run `pip install 'mlm_dist[onnx]'`") from error
    # The traced row is as long as rows can be, so the attention is the one for long rows if there are any.
    tokens = torch.zeros(2, encoder.config.block_size, dtype=torch.long)
    sizes = {dimension: torch.export.Dim.DYNAMIC for dimension, size in enumerate(tokens.shape) if size > 1}
    with quiet():
        inputs = tokens, torch.ones_like(tokens)
        program = torch.export.export(PaddedEncoder(encoder), inputs, dynamic_shapes=(sizes, sizes))
        program = program.run_decompositions({torch.ops.aten.searchsorted.Tensor: count_smaller})
        converted = torch.onnx.export(
            program, output_names=[LOGITS], dynamic_shapes=(DIMENSIONS, DIMENSIONS), dynamo=True, verbose=False
        )
    assert converted is not None
    ClearMetadataAndDocStringPass()(converted.model)  # the lines of Python, with the paths of this machine
    converted.save(file)


def count_smaller(row: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """`torch.searchsorted`, which ONNX lacks: (B, T) and (B, N) -> (B, N)."""
    return (row[:, None] < values[:, :, None]).sum(2)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what torch's exporter logs about itself: packages that it does not need here, and deprecations in it."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(logging.NOTSET)
