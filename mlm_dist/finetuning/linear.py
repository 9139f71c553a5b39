"""Linear models on fixed features: logistic regression for classes, ridge regression for scores."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mlm_dist.errors import UserError
from mlm_dist.finetuning.examples import Split, Targets
from mlm_dist.finetuning.metrics import value_of

MOST_ITERATIONS = 1000
NEVER = -1e9  # the bias of a class that is not predicted

Features = Any
"""(N, features): a NumPy array, or a sparse matrix of SciPy."""


class LinearModel(NamedTuple):
    """A fitted model.

    Attributes:
        model: of scikit-learn.
        strength: the inverse of its regularization, chosen on the dev set.
        dev: the main metric on the dev set, the dev metric.
    """

    model: Any
    strength: float
    dev: float


class Parts(NamedTuple):
    """The features of the parts of a split."""

    learn: Features
    dev: Features
    test: Features


def import_sklearn() -> None:
    """Check that scikit-learn is there. Raises `UserError` if it is not installed."""
    try:
        import sklearn  # noqa: F401, PLC0415 (an extra)
    except ImportError as error:
        raise UserError("finetune needs scikit-learn: run `pip install 'mlm_dist[finetune]'`") from error


def fit_linear(features: Parts, split: Split, classes: int, strengths: Sequence[float]) -> LinearModel:
    """Fit a model with each strength, and choose the one with the highest dev metric.

    Args:
        features: of the parts.
        split: with the targets of the parts.
        classes: number of classes; 0: the targets are scores.
        strengths: inverses of the regularization.
    """
    from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415 (an extra)
    from sklearn.linear_model import LogisticRegression, Ridge  # noqa: PLC0415

    fitted = []
    for strength in strengths:
        model = LogisticRegression(C=strength, max_iter=MOST_ITERATIONS) if classes else Ridge(alpha=1 / strength)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # then it has stopped early, and the dev set judges it
            model.fit(features.learn, split.learn.targets)
        fitted.append(LinearModel(model, strength, value_of(split.dev.targets, model.predict(features.dev), classes)))
    return max(fitted, key=lambda model: model.dev)  # of equal ones the most regularized


def combine(vectors: Sequence[Features]) -> list[Features]:
    """The features of one text, or of two: both, the distance in each dimension, and the product."""
    if len(vectors) == 1:
        return [*vectors]
    first, second = vectors
    product = first * second if isinstance(first, np.ndarray) else first.multiply(second)
    return [first, second, abs(first - second), product]


def columns(texts: Sequence[tuple[str, ...]]) -> list[list[str]]:
    """The first texts of all examples; then, of pairs, the second ones."""
    return [list(column) for column in zip(*texts, strict=True)]


class Scaling(NamedTuple):
    """What brings features to mean 0 and variance 1."""

    mean: npt.NDArray[np.float64]
    deviation: npt.NDArray[np.float64]

    @classmethod
    def of(cls, features: npt.NDArray[np.float64]) -> "Scaling":
        """That of some features, (N, features). Constant ones keep their scale."""
        deviation = features.std(0)
        return cls(features.mean(0), np.where(deviation > 0, deviation, 1.0))

    def apply(self, features: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The scaled features."""
        return (features - self.mean) / self.deviation


def coefficients(model: Any, scaling: Scaling, classes: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Weights (outputs, features) and biases (outputs,) of a model for unscaled features.

    The class with the largest output is predicted, or the only output is the score. The bias of a class that the model
    did not learn from is `NEVER`.
    """
    weight, bias = np.atleast_2d(model.coef_), np.atleast_1d(model.intercept_)
    weight = weight / scaling.deviation
    bias = bias - weight @ scaling.mean
    if not classes:
        return weight, bias
    if len(bias) == 1:  # of two classes: one output, positive for the second
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    every = np.zeros((classes, weight.shape[1])), np.full(classes, NEVER)
    every[0][model.classes_], every[1][model.classes_] = weight, bias
    return every


def predict(weight: Targets, bias: Targets, features: Features, classes: int) -> Targets:
    """What such a model predicts of unscaled features."""
    outputs = features @ weight.T + bias
    predicted: Targets = outputs.argmax(1) if classes else outputs[:, 0]
    return predicted
