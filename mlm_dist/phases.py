"""The phases of a run: which steps have batches of which shape.

All steps of a phase have batches of one shape. The last phase has `train.batch_size` rows of `model.block_size` tokens;
those of `train.phases` come before it, with fewer rows or shorter ones. Rows are numbered over the whole run, so every
phase continues where the one before it has stopped reading.
"""

import bisect
import dataclasses
import math
from typing import NamedTuple

from mlm_dist.config import Config, largest_divisor


class Phase(NamedTuple):
    """Consecutive steps with batches of one shape.

    Attributes:
        first_step: from 0 at the start of the run.
        end: the first step after it; infinite for the last phase.
        rows_before: rows that the run has read before it, each of `model.block_size` tokens.
        batch_size: rows per step.
        row_length: tokens of the pieces into which its rows are cut; `model.block_size` if they are not.
    """

    first_step: int
    end: float
    rows_before: int
    batch_size: int
    row_length: int


class Phases:
    """All phases of a run. The last one has no end.

    Args:
        config: of the run.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        train, block_size = config.train, config.model.block_size
        self.phases, step, rows = [], 0, 0
        for earlier in train.phases:
            end = step + earlier["steps"]
            self.phases.append(Phase(step, end, rows, earlier["batch_size"], earlier["row_length"]))
            step, rows = end, rows + earlier["steps"] * earlier["batch_size"]
        self.phases.append(Phase(step, math.inf, rows, train.batch_size, block_size))

    def at(self, step: int) -> Phase:
        """The phase of a step."""
        return self.phases[bisect.bisect_right(self.phases, step, key=lambda phase: phase.first_step) - 1]

    def rows_before(self, step: int) -> int:
        """Rows that the run reads before a step."""
        phase = self.at(step)
        return phase.rows_before + (step - phase.first_step) * phase.batch_size

    def steps_to(self, rows: float) -> int:
        """The number of steps after which the run has read at least this many rows."""
        index = bisect.bisect_left(self.phases, rows, key=lambda phase: phase.rows_before) - 1
        phase = self.phases[max(index, 0)]
        return phase.first_step + math.ceil((rows - phase.rows_before) / phase.batch_size)

    def config_of(self, phase: Phase, world_size: int) -> Config:
        """The config of a run that consists of this phase alone, with its pieces counted as rows."""
        pieces = self.config.model.block_size // phase.row_length
        micro_batch_size = largest_divisor(phase.batch_size // world_size, self.config.micro_batch_size(world_size))
        train = dataclasses.replace(
            self.config.train,
            batch_size=phase.batch_size * pieces,
            micro_batch_size=micro_batch_size * pieces,
            phases=[],
        )
        model = dataclasses.replace(self.config.model, block_size=phase.row_length)
        return dataclasses.replace(self.config, model=model, train=train)


def has_smaller_batches(config: Config) -> bool:
    """Whether a run has steps of fewer than `train.batch_size` rows."""
    return any(phase["batch_size"] < config.train.batch_size for phase in config.train.phases)
