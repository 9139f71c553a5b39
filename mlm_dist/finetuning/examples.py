"""The labelled examples of a task: their classes or scores, and their parts to learn from, to choose by, to test on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mlm_dist.errors import UserError
from mlm_dist.texts.labelled_texts import LabelFormat, LabelledText, read_labelled
from mlm_dist.texts.records import MOST_NAMES

DEV_FRACTION = 0.1  # of the training file, unless there is a dev file
TEST_FRACTION = 0.2  # of the training file, unless there is a test file

Targets = npt.NDArray[Any]
"""(N,): the index of the class of each example, int64; or its score, float64."""


@dataclass(frozen=True)
class Examples:
    """Labelled examples.

    Attributes:
        texts: of each example, one or two.
        targets: of each example.
    """

    texts: list[tuple[str, ...]]
    targets: Targets

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: npt.NDArray[np.int64]) -> "Examples":
        """The examples with these indices."""
        return Examples([self.texts[index] for index in indices], self.targets[indices])


class Split(NamedTuple):
    """The examples as they are used with a seed.

    Attributes:
        learn: to learn from.
        dev: to choose by: when to stop, how much to regularize.
        test: to measure on.
    """

    learn: Examples
    dev: Examples
    test: Examples


@dataclass(frozen=True)
class LabelledTask:
    """A task.

    Attributes:
        classes: the labels of the training file, in order; empty if the labels are scores.
        train: the examples of the training file, without those held out as a test set.
        dev: those of the dev file; None: each seed has another part of `train`.
        test: those of the test file or held out.
    """

    classes: tuple[str, ...]
    train: Examples
    dev: Examples | None
    test: Examples

    def split(self, seed: int) -> Split:
        """The parts for a seed.

        Raises:
            UserError: what is left to learn from has one class only, or a part one score only.
        """
        if self.dev:
            return Split(self.train, self.dev, self.test)
        dev, learn = hold_out(self.train, DEV_FRACTION, seed)
        kind = "class" if self.classes else "score"
        check_varied(learn, f"without the dev set, the training file has one {kind} only: give more texts, or --dev")
        if not self.classes:
            check_varied(dev, "the dev set has one score only: give more texts, or --dev")
        return Split(learn, dev, self.test)


def read_task(
    train: Path, dev: Path | None, test: Path | None, label_format: LabelFormat, is_score: bool
) -> LabelledTask:
    """Read a task from its files.

    Args:
        train: the training file.
        dev: the dev file, if there is one.
        test: the test file; None: a part of the training file, the same for all seeds, is held out.
        label_format: how they are read.
        is_score: whether the labels are scores.

    Raises:
        UserError: a file cannot be read, a label is not a number or not in the training file, or there are too few.
    """
    read = read_labelled(train, label_format)
    least = math.ceil(1 / DEV_FRACTION)
    if len(read) < least:
        raise UserError(f"{train}: it has {len(read)} labelled texts: give at least {least}")
    classes = () if is_score else class_names(train, read)
    examples = to_examples(read, classes)
    check_varied(examples, f"{train}: all its scores are {read[0].label}: there is nothing to learn")
    given = {path: to_examples(read_labelled(path, label_format), classes) for path in (dev, test) if path}
    held_out, rest = (given[test], examples) if test else hold_out(examples, TEST_FRACTION, 0)
    kind = "score" if is_score else "class"
    check_varied(rest, f"{train}: without the test set, it has one {kind} only: give more texts, or --test")
    own_dev = given[dev] if dev else None
    if is_score:
        for name, path, part in (("dev", dev, own_dev), ("test", test, held_out)):
            if part:
                check_varied(part, f"{path or train}: the {name} set has one score only: give more texts")
    return LabelledTask(classes, rest, own_dev, held_out)


def check_varied(examples: Examples, message: str) -> None:
    """Raise a `UserError` unless there are two different classes or scores."""
    if len(set(examples.targets)) < 2:
        raise UserError(message)


def class_names(path: Path, read: Sequence[LabelledText]) -> tuple[str, ...]:
    """The labels of a training file: in numerical order if all are whole numbers, else alphabetically.

    Raises:
        UserError: there is only one, or so many that they must be scores.
    """
    labels = {example.label for example in read}
    if len(labels) == 1:
        raise UserError(f"{path}: all its texts have the label {read[0].label}: there is nothing to learn")
    if len(labels) > len(read) / 2:
        raise UserError(f"{path} has {len(labels):,} different labels: are they scores (--score)?")
    are_numbers = all(label.isascii() and label.isdigit() for label in labels)
    return tuple(sorted(labels, key=lambda label: (int(label) if are_numbers else 0, label)))


def to_examples(read: Sequence[LabelledText], classes: tuple[str, ...]) -> Examples:
    """Turn labels into targets; without classes, they are scores.

    Raises:
        UserError: a label is not one of the classes, or not a number.
    """
    indices = {label: index for index, label in enumerate(classes)}
    targets: list[float] = []
    for _, label, place in read:
        if classes and label not in indices:
            known = ", ".join(classes[:MOST_NAMES])
            raise UserError(f"{place}: the label {label} is not in the training file, which has {known}")
        targets.append(indices[label] if classes else score_of(label, place))
    return Examples([example.texts for example in read], np.array(targets, np.int64 if classes else np.float64))


def score_of(label: str, place: str) -> float:
    """A score. Raises UserError if it is not a finite number."""
    try:
        score = float(label)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise UserError(f"{place}: the score {label} is not a number")
    return score


def hold_out(examples: Examples, fraction: float, seed: int) -> tuple[Examples, Examples]:
    """A random part of the examples, and the rest."""
    order = np.random.default_rng(seed).permutation(len(examples))
    count = math.ceil(fraction * len(examples))
    return examples.take(np.sort(order[:count])), examples.take(np.sort(order[count:]))


def repeated(task: LabelledTask) -> int:
    """The number of test examples whose texts are in the training file or the dev file too."""
    known = {*task.train.texts, *(task.dev.texts if task.dev else ())}
    return sum(texts in known for texts in task.test.texts)
