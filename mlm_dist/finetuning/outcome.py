"""What comes out of learning a task once."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from mlm_dist.finetuning.examples import Targets


class Outcome(NamedTuple):
    """What a model has learned with a seed.

    Attributes:
        test: its predictions on the test set.
        dev: its main metric on the dev set, the dev metric.
        chosen: what was chosen on the dev set, by name.
        save: writes the model into an empty folder; None for a baseline.
    """

    test: Targets
    dev: float
    chosen: Mapping[str, float]
    save: Callable[[Path], None] | None = None
