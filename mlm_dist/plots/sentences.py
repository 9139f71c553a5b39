"""Sentences with masks, and what a trained model predicts for them."""

from collections.abc import Sequence
from typing import NamedTuple

from mlm_dist.data.tokenizer import MASK
from mlm_dist.inference.marks import MASKED_WORD
from mlm_dist.inference.model import TrainedModel
from mlm_dist.plots.tokens import visible

SENTENCES = (
    f"She opened the {MASK} and looked out.",
    f"He was a very {MASK} man.",
    f"They went down to the {MASK} and {MASK} nothing.",
)
CANDIDATES = 5


class Sentence(NamedTuple):
    """A text with masks, and what a model predicts for them.

    Attributes:
        parts: of the text, before, between and after its masks.
        masks: for each mask, the most likely words, each with its probability in percent.
    """

    parts: list[str]
    masks: list[list[tuple[str, float]]]


def fill_sentences(model: TrainedModel, texts: Sequence[str]) -> list[Sentence]:
    """Fill the masks of texts, or of some English sentences if no texts are given.

    Raises:
        UserError: as `TrainedModel.fill`.
    """
    return [
        Sentence(
            MASKED_WORD.sub("\0", text).split("\0"),
            [
                [(visible(candidate.text), 100 * candidate.probability) for candidate in candidates]
                for candidates in model.fill(text, CANDIDATES).masks
            ],
        )
        for text in texts or SENTENCES
    ]
