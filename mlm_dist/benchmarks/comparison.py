"""What the runs of contenders took to a target, as means with intervals, and whether one needs less than another."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mlm_dist.benchmarks.report import header, row
from mlm_dist.benchmarks.to_loss import Arrival

CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """A mean, and half the width of its 95 % confidence interval by Student's t; NaN for a single value."""

    mean: float
    half_width: float


class Difference(NamedTuple):
    """A contender against the first one.

    Attributes:
        ratio: of the means.
        p: the one-sided p-value of Welch's t-test for the contender needing less; NaN with single values, or if neither
            varies.
    """

    ratio: float
    p: float


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of at least one value, with its interval."""
    from scipy import stats  # noqa: PLC0415 (slow to import)

    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return Estimate(mean, math.nan)
    error = float(np.std(values, ddof=1)) / math.sqrt(count)
    return Estimate(mean, float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * error)


def compare(values: Sequence[float], first: Sequence[float]) -> Difference:
    """Compare what a contender took with what the first one took."""
    from scipy import stats  # noqa: PLC0415 (slow to import)

    ratio = float(np.mean(values) / np.mean(first))
    if min(len(values), len(first)) < 2 or len({*values}) == len({*first}) == 1:
        return Difference(ratio, math.nan)
    return Difference(ratio, float(stats.ttest_ind(values, first, equal_var=False, alternative="less").pvalue))


def comparison_table(arrivals: dict[str, list[Arrival | None]]) -> str:
    """A table in Markdown: what the runs of each contender took, and how that compares with the first contender.

    Only runs that arrived at the target count.
    """
    (_, first), *_ = arrivals.items()
    lines = header("contender", "arrived", "steps", "tokens", "time", "peak memory")
    lines[0] += " tokens of the first | time | memory |"
    lines[1] += "---|---|---|"
    for name, runs in arrivals.items():
        arrived, base = [run for run in runs if run], [run for run in first if run]
        if not arrived:
            lines.append(row(name, f"0 of {len(runs)}", *["-"] * 7))
            continue
        steps, tokens, seconds, memory = (estimate(values) for values in zip(*arrived, strict=True))
        ratios = [against(*pair) for pair in zip(zip(*arrived, strict=True), zip(*base, strict=True), strict=False)]
        cells = [
            with_interval(steps, 1, "{:,.0f}"),
            with_interval(tokens, 1e-6, "{:.2f}", " M"),
            with_interval(seconds, 1, "{:,.0f}", " s"),
            with_interval(memory, 1e-9, "{:.2f}", " GB"),
        ]
        lines.append(row(name, f"{len(arrived)} of {len(runs)}", *cells, *(ratios[1:] or ["-"] * 3)))
    return "\n".join(lines)


def with_interval(value: Estimate, scale: float, form: str, unit: str = "") -> str:
    """An estimate in a table."""
    interval = "" if math.isnan(value.half_width) else f" ± {form.format(value.half_width * scale)}"
    return f"{form.format(value.mean * scale)}{interval}{unit}"


def against(values: Sequence[float], first: Sequence[float]) -> str:
    """A difference in a table."""
    found = compare(values, first)
    return f"{found.ratio:.2f}" + ("" if math.isnan(found.p) else f" (p {found.p:.2g})")
