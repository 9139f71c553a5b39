"""What a model is asked for the pictures of its run."""

from collections.abc import Sequence
from typing import NamedTuple

from mlm_dist.inference.model import TrainedModel
from mlm_dist.plots.attention import Attention, attend
from mlm_dist.plots.neighbours import Neighbourhood, find_neighbours
from mlm_dist.plots.sentences import Sentence, fill_sentences


class Answers(NamedTuple):
    """What a model has answered.

    Attributes:
        attention: to a text, if one was given.
        neighbourhoods: of the words that were given.
        sentences: filled.
        note: why there are none.
    """

    attention: Attention | None
    neighbourhoods: list[Neighbourhood]
    sentences: list[Sentence]
    note: str


def answer(model: TrainedModel, text: str | None, words: Sequence[str], texts: Sequence[str]) -> Answers:
    """Ask a model for its attention to a text, the neighbours of words, and what it fills into the masks of texts.

    Raises:
        UserError: it cannot answer.
    """
    attention = attend(model, text) if text is not None else None
    neighbourhoods = [find_neighbours(model, word) for word in words]
    return Answers(attention, neighbourhoods, fill_sentences(model, texts), note="")
