"""At which steps a run saves its milestones."""

from collections.abc import Mapping, Sequence

from mlm_dist.config import Config, words_of
from mlm_dist.data.corpus import Corpus
from mlm_dist.data.word_count import words_per_token
from mlm_dist.errors import UserError
from mlm_dist.phases import Phases


def milestone_steps(config: Config, corpora: Sequence[Corpus]) -> dict[int, str]:
    """The steps of the milestones of a run, in order, each with what the config has for it.

    A number of words becomes the first step after which the run has read at least as many. A row has the mean number of
    words of its tokens, over the training texts and, in a mixture, by their weights.

    Raises:
        UserError: the training texts have no words.
    """
    milestones, phases = config.checkpoint.milestones, Phases(config)
    are_words = any(isinstance(value, str) for value in milestones)
    words_per_row = config.model.block_size * mean_words(config, corpora) if are_words else 0.0
    steps = {
        value if isinstance(value, int) else phases.steps_to(words_of(value) / words_per_row): value
        for value in milestones
    }
    return {step: str(steps[step]) for step in sorted(steps)}


def mean_words(config: Config, corpora: Sequence[Corpus]) -> float:
    """The words per token of the rows of a run. Raises `UserError` if there are none."""
    weights = config.data.weights
    per_token = [words_per_token(corpus.train, corpus.tokenizer) for corpus in corpora]
    mean = sum(weight * words for weight, words in zip(weights, per_token, strict=True)) / sum(weights)
    if not mean:
        raise UserError(f"{config.data.paths} has no words: give the steps of checkpoint.milestones")
    return mean


def describe_milestones(milestones: Mapping[int, str]) -> str:
    """The steps of milestones, as "500, 812 (1Mw)"."""
    return ", ".join(str(step) if value == str(step) else f"{step} ({value})" for step, value in milestones.items())
