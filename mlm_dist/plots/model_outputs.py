"""The outputs of a model that the plots and the report of its run show."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from mlm_dist.inference.model import TrainedModel
from mlm_dist.plots.attention import Attention, compute_attention
from mlm_dist.plots.neighbours import Neighbourhood, find_neighbours
from mlm_dist.plots.sentences import Sentence, fill_sentences
from mlm_dist.run.origin import digest as parameters_digest


class ModelOutputs(NamedTuple):
    """The outputs of a model.

    Attributes:
        attention: the attention maps of a text, if one was given.
        neighbourhoods: of the words that were given.
        sentences: with their masks filled.
        note: why there are no sentences; empty if there are some.
        digest: returns the SHA-256 of its parameters, or nothing if they cannot be loaded.
        step: of its parameters, if it is known.
    """

    attention: Attention | None
    neighbourhoods: list[Neighbourhood]
    sentences: list[Sentence]
    note: str
    digest: Callable[[], str] = str
    step: int | None = None


def compute_outputs(model: TrainedModel, text: str | None, words: Sequence[str], texts: Sequence[str]) -> ModelOutputs:
    """Compute the attention maps of a text, the neighbours of words, and the predictions for the masks of texts.

    Raises:
        UserError: the model cannot process one of them.
    """
    attention = compute_attention(model, text) if text is not None else None
    neighbourhoods = [find_neighbours(model, word) for word in words]
    digest = partial(parameters_digest, model.encoder.state_dict())
    return ModelOutputs(attention, neighbourhoods, fill_sentences(model, texts), "", digest, model.step)
