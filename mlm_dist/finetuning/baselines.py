"""What a trained encoder has to beat without any encoder: the most frequent class, and words counted."""

import numpy as np

from mlm_dist.finetuning.examples import Split
from mlm_dist.finetuning.linear import Parts, columns, combine, fit_linear
from mlm_dist.finetuning.metrics import value_of
from mlm_dist.finetuning.outcome import Outcome

STRENGTHS = (1.0, 10.0, 100.0, 1000.0)
WORDS = r"\w+|[^\w\s]"  # and signs


def majority(split: Split, classes: int) -> Outcome:
    """Always predict the most frequent class, or the mean score."""
    targets = split.learn.targets
    guess = np.bincount(targets, minlength=classes).argmax() if classes else targets.mean()
    dev, test = (np.full(len(part), guess) for part in (split.dev, split.test))
    return Outcome(test, value_of(split.dev.targets, dev, classes), {})


def tf_idf(split: Split, classes: int) -> Outcome:
    """Logistic or ridge regression on the TF-IDF of words and pairs of words."""
    from scipy.sparse import hstack  # noqa: PLC0415 (an extra)
    from sklearn.feature_extraction.text import TfidfVectorizer  # noqa: PLC0415

    vectorizer = TfidfVectorizer(token_pattern=WORDS, ngram_range=(1, 2), sublinear_tf=True)
    vectorizer.fit([text for texts in split.learn.texts for text in texts])
    parts = Parts(
        *(hstack(combine([vectorizer.transform(column) for column in columns(part.texts)])).tocsr() for part in split)
    )
    fitted = fit_linear(parts, split, classes, STRENGTHS)
    return Outcome(fitted.model.predict(parts.test), fitted.dev, {"strength": fitted.strength})
