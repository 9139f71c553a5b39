"""A linear probe on the pooled states of an encoder, which does not change."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mlm_dist.finetuning.examples import LabelledTask, Split
from mlm_dist.finetuning.linear import Parts, Scaling, coefficients, columns, combine, fit_linear, predict
from mlm_dist.finetuning.outcome import Outcome
from mlm_dist.inference.embedding import embed
from mlm_dist.inference.predictor import Predictor

STRENGTHS = (0.01, 0.1, 1.0, 10.0)
HEAD_JSON = "head.json"

States = dict[tuple[str, ...], npt.NDArray[np.float32]]
"""The features of each text, or of each pair."""


def pool(predictor: Predictor, task: LabelledTask, layer: int | None) -> States:
    """The features of all examples of a task: the mean of the states of a layer over the tokens of a text, (C,).

    Of a pair, both, their distance in each dimension and their product, (4 C,).

    Args:
        predictor: the encoder.
        task: with the examples.
        layer: as in `TrainedModel.embed`.
    """
    parts = [part for part in (task.train, task.dev, task.test) if part]
    texts = [*dict.fromkeys(texts for part in parts for texts in part.texts)]
    vectors = [embed(predictor, column, layer) for column in columns(texts)]
    return dict(zip(texts, np.concatenate(combine(vectors), axis=1), strict=True))


def probe_states(states: States, split: Split, classes: Sequence[str], layer: int) -> Outcome:
    """Fit a linear model on the features of the examples, scaled to mean 0 and variance 1.

    Args:
        states: the features.
        split: the parts of the task.
        classes: the labels; empty: they are scores.
        layer: as in `TrainedModel.embed`, for the file.
    """
    features = Parts(*(np.array([states[texts] for texts in part.texts], np.float64) for part in split))
    scaling = Scaling.of(features.learn)
    fitted = fit_linear(Parts(*map(scaling.apply, features)), split, len(classes), STRENGTHS)
    weight, bias = coefficients(fitted.model, scaling, len(classes))

    def save(folder: Path) -> None:
        head = {"layer": layer, "classes": [*classes], "weight": weight.tolist(), "bias": bias.tolist()}
        (folder / HEAD_JSON).write_text(json.dumps(head) + "\n", encoding="utf-8")

    return Outcome(predict(weight, bias, features.test, len(classes)), fitted.dev, {"strength": fitted.strength}, save)
