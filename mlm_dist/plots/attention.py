"""Attention maps of a trained model, one per head."""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from mlm_dist.errors import UserError
from mlm_dist.inference.model import TrainedModel
from mlm_dist.model.encoder import as_encoder
from mlm_dist.plots.tokens import label

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

INCHES_PER_TOKEN = 0.19
MAX_INCHES = 80.0  # of all maps in a row or column; more tokens get smaller labels instead
GAP, TITLE, COLOR_BAR = 0.2, 0.5, 1.1  # inches: between maps, above each map, and beside all maps
MAX_TOKENS_FOR_SHARED_LABELS = 24
POINTS_PER_INCH = 72


class Attention(NamedTuple):
    """The attention maps of a text.

    Attributes:
        tokens: of the text, as labels.
        maps: (blocks, heads, T, T): how much the token of each row attends to the token of each column. Rows sum to 1.
    """

    tokens: list[str]
    maps: npt.NDArray[np.float64]


@torch.no_grad()
def compute_attention(model: TrainedModel, text: str) -> Attention:
    """Compute the attention maps of a text, which may contain masks.

    Raises:
        UserError: the text is empty, or longer than the context window.
    """
    ids, block_size = model.tokenizer.encode_with_masks(text), model.encoder.config.block_size
    if not ids:
        raise UserError("--attention: the text is empty")
    if len(ids) > block_size:
        raise UserError(
            f"--attention: the text has {len(ids)} tokens, but the context window is {block_size}: use a shorter text"
        )
    inputs: list[torch.Tensor] = []

    def record_input(_: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        inputs.append(arguments[0])

    attentions: list[Any] = [block.attention for block in as_encoder(model.encoder, "--attention").blocks]
    hooks = [attention.register_forward_pre_hook(record_input) for attention in attentions]
    try:
        model.encoder.encode(torch.tensor([ids], device=model.device))
    finally:
        for hook in hooks:
            hook.remove()
    maps = [
        torch.cat([attention.head(index).attention_weights(x) for index in range(attention.heads)])
        for attention, x in zip(attentions, inputs, strict=True)
    ]
    return Attention([label(model.tokenizer, token) for token in ids], torch.stack(maps).double().cpu().numpy())


def size_of_attention(attention: Attention) -> tuple[float, float]:
    """Width and height of the plot, in inches."""
    blocks, heads, length, _ = attention.maps.shape
    side = length * inches_per_token(attention)
    labels = 0.65 * inches_per_token(attention) * max(map(len, attention.tokens))
    beside, below = (heads, blocks) if has_labels_on_every_map(attention) else (1, 1)
    return heads * (side + GAP) + beside * labels + COLOR_BAR, blocks * (side + TITLE) + below * labels


def inches_per_token(attention: Attention) -> float:
    """Width of a token in a map, in inches."""
    blocks, heads, length, _ = attention.maps.shape
    widest: int = length * max(blocks, heads)
    return min(INCHES_PER_TOKEN, MAX_INCHES / widest)


def has_labels_on_every_map(attention: Attention) -> bool:
    """Whether every map has labels, not only those at the edge.

    Maps of long texts are so large that each is read by itself.
    """
    return len(attention.tokens) > MAX_TOKENS_FOR_SHARED_LABELS


def lay_out_attention(figure: "Figure", attention: Attention) -> None:
    """Plot the maps, one row per block, all with the same colour scale."""
    blocks, heads, *_ = attention.maps.shape
    grid: Any = figure.subplots(blocks, heads, squeeze=False)
    label_every_map, largest = has_labels_on_every_map(attention), attention.maps.max()
    for block, row in enumerate(grid):
        for head, axes in enumerate(row):
            image = axes.imshow(attention.maps[block, head], cmap="Blues", vmin=0, vmax=largest, interpolation="none")
            axes.set_title(f"block {block}, head {head}", fontsize="medium")
            axes.spines[:].set_visible(False)
            label_axis(axes.yaxis, attention if label_every_map or head == 0 else None)
            label_axis(axes.xaxis, attention if label_every_map or block == blocks - 1 else None, rotation=90)
    figure.colorbar(
        image,
        ax=grid,
        label="attention of the token on the left to the token below",
        fraction=0.3 / figure.get_figwidth(),
        pad=0.2 / figure.get_figwidth(),
        aspect=30,
    )


def label_axis(axis: "Axis", attention: Attention | None, **style: Any) -> None:
    """Label an axis with the tokens, or remove its labels if there is no attention to label."""
    axis.set_tick_params(length=0)
    if attention:
        size = 0.7 * POINTS_PER_INCH * inches_per_token(attention)
        axis.set_ticks(range(len(attention.tokens)), attention.tokens, fontsize=size, **style)
    else:
        axis.set_ticks([])
