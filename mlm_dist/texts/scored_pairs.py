"""Reads pairs of texts with a score of how similar people find them, such as those of an STS benchmark."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from mlm_dist.arguments import read_lines
from mlm_dist.errors import UserError
from mlm_dist.texts.reading import fault_of


class ScoredPair(NamedTuple):
    """Two texts, and their similarity on any scale."""

    first: str
    second: str
    score: float


def read_scored_pairs(file: Path) -> list[ScoredPair]:
    """Read the pairs of a file: in each line two texts and a score, with tabs between them.

    Raises:
        UserError: the file cannot be read, a line is anything else, or all scores are the same.
    """
    pairs = []
    for number, line in enumerate(read_lines(str(file)), start=1):
        place, fields = f"{file} line {number}", line.split("\t")
        if len(fields) != 3:
            raise UserError(f"{place}: it has {len(fields)} fields: give two texts and a score, with tabs between them")
        if fault := fault_of(line, "UTF-8"):
            raise UserError(f"{place}: {fault}")
        try:
            pairs.append(ScoredPair(fields[0], fields[1], float(fields[2])))
        except ValueError as error:
            raise UserError(f"{place}: the score is {fields[2]!r:.80}: it must be a number") from error
        if not np.isfinite(pairs[-1].score):
            raise UserError(f"{place}: the score is {fields[2]}: it must be a finite number")
    if len({pair.score for pair in pairs}) < 2:
        raise UserError(f"{file}: all scores are the same: no order can be compared with them")
    return pairs
