"""Sentences with masks, and what a trained model puts there."""

from collections.abc import Sequence
from typing import NamedTuple

from mlm_dist.data.tokenizer import MASK
from mlm_dist.pictures.tokens import visible
from mlm_dist.trained.model import TrainedModel

SENTENCES = (
    f"She opened the {MASK} and looked out.",
    f"He was a very {MASK} man.",
    f"They went down to the {MASK} and {MASK} nothing.",
)
CANDIDATES = 5


class Sentence(NamedTuple):
    """A text with masks and what a model puts there.

    Attributes:
        parts: of the text, between its masks.
        masks: for each mask the likeliest tokens, each with its probability in percent.
    """

    parts: list[str]
    masks: list[list[tuple[str, float]]]


def fill_sentences(model: TrainedModel, texts: Sequence[str]) -> list[Sentence]:
    """Fill the masks of texts; if there are none, of some English sentences, as far as the model sees so much at once.

    Raises:
        UserError: a text cannot be filled.
    """
    block_size = model.encoder.config.block_size
    fitting = [text for text in SENTENCES if len(model.tokenizer.encode_with_masks(text)) <= block_size]
    return [
        Sentence(
            text.split(MASK),
            [
                [(visible(candidate.text), 100 * candidate.probability) for candidate in candidates]
                for candidates in model.fill(text, CANDIDATES)
            ],
        )
        for text in texts or fitting
    ]
