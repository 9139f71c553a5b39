"""What the runs of contenders took to a target, as means with intervals, and whether one needs less than another."""

import json
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mlm_dist.benchmarks.report import header, row
from mlm_dist.benchmarks.to_loss import Contender, Cost, ToLoss
from mlm_dist.files import replacing
from mlm_dist.plots.to_loss import save_to_loss

CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """A mean, and half the width of its 95 % confidence interval by Student's t; NaN for a single value."""

    mean: float
    half_width: float


class Difference(NamedTuple):
    """A contender against the first one.

    Attributes:
        ratio: of the means.
        p: the one-sided p-value of Welch's t-test for the contender needing less; NaN if one of them does not vary.
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
    """Compare what a contender took with what the first one took, which is above 0."""
    from scipy import stats  # noqa: PLC0415 (slow to import)

    ratio = float(np.mean(values) / np.mean(first))
    if 1 in (len({*values}), len({*first})):
        return Difference(ratio, math.nan)
    return Difference(ratio, float(stats.ttest_ind(values, first, equal_var=False, alternative="less").pvalue))


def write_comparison(comparison: ToLoss, contenders: Sequence[Contender], seeds: Sequence[int]) -> str:
    """Write to_loss.json and to_loss.png into the folder of a comparison, and return its table."""
    costs = {contender.name: [comparison.cost(contender, seed) for seed in seeds] for contender in contenders}
    histories = {
        contender.name: [comparison.history(comparison.run_dir(contender, seed)) for seed in seeds]
        for contender in contenders
    }
    save_to_loss(comparison.out / "to_loss.png", histories, comparison.target)
    runs = {name: [cost and cost._asdict() for cost in found] for name, found in costs.items()}
    with replacing(comparison.out / "to_loss.json") as file:
        file.write(json.dumps({"to_loss": comparison.target, "runs": runs}, indent=1).encode() + b"\n")
    return comparison_table(costs)


def comparison_table(costs: dict[str, list[Cost | None]]) -> str:
    """A table in Markdown: what the runs of each contender took, and how that compares with the first contender.

    Runs that did not reach the target are left out of the means, and a contender with such runs is not compared.
    """
    (_, first), *_ = costs.items()
    names = ("contender", "reached", "steps", "tokens", "time", "peak memory")
    lines = header(*names, "tokens, ratio", "time, ratio", "memory, ratio")
    for name, runs in costs.items():
        reached = [run for run in runs if run]
        if not reached:
            lines.append(row(name, f"0 of {len(runs)}", *["-"] * 7))
            continue
        steps, tokens, seconds, memory = (estimate(values) for values in zip(*reached, strict=True))
        cells = [
            with_interval(steps, 1, "{:,.0f}"),
            with_interval(tokens, 1e-6, "{:.2f}", " M"),
            with_interval(seconds, 1, "{:,.0f}", " s"),
            with_interval(memory, 1e-9, "{:.2f}", " GB") if memory.mean else "-",
        ]
        lines.append(row(name, f"{len(reached)} of {len(runs)}", *cells, *ratios(runs, first)))
    return "\n".join(lines)


def ratios(runs: list[Cost | None], first: list[Cost | None]) -> list[str]:
    """The cells that compare tokens, time and memory with those of the first contender."""
    cells = []
    for key in ("tokens", "seconds", "peak_memory"):
        own, others = ([getattr(run, key, 0.0) for run in part] for part in (runs, first))
        cells.append("-" if runs is first or not all([*own, *others]) else against(own, others))
    return cells


def with_interval(value: Estimate, scale: float, form: str, unit: str = "") -> str:
    """An estimate in a table."""
    interval = "" if math.isnan(value.half_width) else f" ± {form.format(value.half_width * scale)}"
    return f"{form.format(value.mean * scale)}{interval}{unit}"


def against(values: Sequence[float], first: Sequence[float]) -> str:
    """A difference in a table."""
    found = compare(values, first)
    return f"{found.ratio:.2f}" + ("" if math.isnan(found.p) else f" (p {found.p:.2g})")
