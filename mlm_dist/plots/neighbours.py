"""The tokens with the nearest embeddings in a trained model."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from mlm_dist.errors import UserError
from mlm_dist.inference.model import TrainedModel
from mlm_dist.model.encoder import as_encoder
from mlm_dist.plots.style import BLUE, GREY, shortened
from mlm_dist.plots.tokens import label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NEIGHBOURS = 10
COLUMNS = 3
PANEL = (3.8, 3.1)  # inches


class Neighbour(NamedTuple):
    """A token near a word: its label, and the cosine similarity of their embeddings."""

    token: str
    similarity: float


class Neighbourhood(NamedTuple):
    """A word, the labels of its tokens, and the tokens nearest to it, nearest first."""

    word: str
    tokens: list[str]
    neighbours: list[Neighbour]


@torch.no_grad()
def find_neighbours(model: TrainedModel, word: str, count: int = NEIGHBOURS) -> Neighbourhood:
    """Find the tokens whose embeddings have the highest cosine similarity to that of a word.

    The word is encoded as in running text, with a space before it. If it has several tokens, its embedding is the mean
    of theirs. The tokens of the word and the special tokens are excluded.

    Raises:
        UserError: the word is empty.
    """
    if not word.strip():
        raise UserError("--neighbours: a word is empty")
    tokenizer = model.tokenizer
    ids = tokenizer.encode(f" {word.strip()}").tolist()
    embeddings = as_encoder(model.encoder, "--neighbours").token_embedding.weight[: tokenizer.vocab_size]
    similarities = torch.cosine_similarity(embeddings[ids].mean(0), embeddings, dim=-1)
    similarities[[*ids, *tokenizer.ids_without_text]] = -torch.inf
    others = int(similarities.isfinite().sum())
    nearest = similarities.topk(min(count, others))
    neighbours = zip(nearest.indices.tolist(), nearest.values.tolist(), strict=True)
    return Neighbourhood(
        word.strip(),
        [label(tokenizer, token) for token in ids],
        [Neighbour(label(tokenizer, token), similarity) for token, similarity in neighbours],
    )


def size_of_neighbours(neighbourhoods: Sequence[Neighbourhood]) -> tuple[float, float]:
    """Width and height of the plot, in inches."""
    columns = min(COLUMNS, len(neighbourhoods))
    return PANEL[0] * columns, PANEL[1] * math.ceil(len(neighbourhoods) / columns) + 0.3


def lay_out_neighbours(figure: "Figure", neighbourhoods: Sequence[Neighbourhood]) -> None:
    """Plot the similarities of the neighbours of each word as bars, all on the same scale."""
    columns = min(COLUMNS, len(neighbourhoods))
    rows = math.ceil(len(neighbourhoods) / columns)
    panels: list[Any] = list(figure.subplots(rows, columns, squeeze=False, sharex=True).flat)
    for axes, (word, tokens, neighbours) in zip(panels, neighbourhoods, strict=False):
        similarities = [neighbour.similarity for neighbour in neighbours]
        bars = axes.barh(range(len(neighbours)), similarities, color=BLUE)
        axes.bar_label(bars, [f"{similarity:.2f}" for similarity in similarities], padding=3, fontsize="small")
        axes.set_yticks(range(len(neighbours)), [neighbour.token for neighbour in neighbours])
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.set_title(shortened(word, 15), loc="left")
        if len(tokens) > 1:
            axes.set_title(shortened(" + ".join(tokens), 19), loc="right", fontsize="small", color=GREY)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        axes.margins(x=0.15)
    for axes in panels[len(neighbourhoods) :]:
        axes.set_axis_off()
    figure.supxlabel("cosine similarity of the token embeddings", fontsize="medium")
