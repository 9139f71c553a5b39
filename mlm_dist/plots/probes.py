"""The learning curve of each phenomenon: accuracy on minimal pairs against the step."""

import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlm_dist.files import replacing
from mlm_dist.inference.probe_report import to_json
from mlm_dist.inference.probing import Accuracy, Group, Probe
from mlm_dist.plots.chart import Chart, new_chart
from mlm_dist.plots.curves import MAX_PLAIN_LABEL, new_line
from mlm_dist.plots.style import BLUE, GREY, VERMILLION, shortened
from mlm_dist.plots.writing import output_folder, save_plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STEMS = {False: "probe", True: "probe_within_word"}  # of the files, by how the sentences were scored
COLUMNS = 4
PANEL = (3.0, 2.2)  # inches
MAX_TITLE_LENGTH = 34  # in characters
MARGIN = 3  # percentage points above and below the curves
LEGEND = ("sum over tokens", "mean per token")


def save_probes(folder: Path, probes: Sequence[Probe]) -> list[Path]:
    """Write learning curves as JSON, PNG and SVG, and return the paths of the files.

    Args:
        folder: to write into.
        probes: one or more, of the same pairs, scored in the same way, which is part of the names of the files.

    Raises:
        UserError: the folder cannot be written.
    """
    stem = folder / STEMS[probes[0].within_word]
    table = stem.with_suffix(".json")
    with output_folder(folder):
        with replacing(table) as file:
            file.write((json.dumps([to_json(probe) for probe in probes], indent=1) + "\n").encode())
        return [table, *save_plot(stem, size_of_probes(probes), lay_out_probes, probes)]


def size_of_probes(probes: Sequence[Probe]) -> tuple[float, float]:
    """Width and height of the plot, in inches."""
    panels = 1 + len(probes[0].phenomena)
    return PANEL[0] * min(COLUMNS, panels), PANEL[1] * math.ceil(panels / COLUMNS) + 0.5


def lay_out_probes(figure: "Figure", probes: Sequence[Probe]) -> None:
    """Plot the accuracy on all pairs and on each phenomenon, with its interval, all on the same scale."""
    curves = curves_of(probes)
    columns = min(COLUMNS, len(curves))
    rows = math.ceil(len(curves) / columns)
    panels: list[Any] = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat)
    steps = [probe.step or 0 for probe in probes]
    for axes, (name, groups) in zip(panels, curves, strict=False):
        plot_groups(axes, steps, groups)
        axes.set_title(shortened(name, MAX_TITLE_LENGTH), loc="left", fontsize="small")
    format_steps(panels[0], max(steps))
    for axes in panels[len(curves) :]:
        axes.set_axis_off()
    lines = [new_line(BLUE, "-", 1.5), new_line(VERMILLION, "--", 1.5)]
    figure.legend(lines, LEGEND, loc="outside upper right", ncols=len(lines))
    figure.supxlabel("step", fontsize="medium")
    figure.supylabel("accuracy (%)", fontsize="medium")


def chart_probes(probes: Sequence[Probe]) -> list[Chart]:
    """The same curves, one chart per panel, for a page that has its own legend."""
    curves, steps = curves_of(probes), [probe.step or 0 for probe in probes]
    bounds = [100 * bound for _, groups in curves for group in groups for bound in (*group.summed, *group.per_token)]

    def plot(axes: "Axes", groups: Sequence[Group]) -> None:
        plot_groups(axes, steps, groups)
        axes.set_ylim(min(50, *bounds) - MARGIN, max(50, *bounds) + MARGIN)
        axes.set_xlabel("step")
        format_steps(axes, max(steps))

    return [
        new_chart(shortened(name, MAX_TITLE_LENGTH), PANEL, partial(plot, groups=groups)) for name, groups in curves
    ]


def curves_of(probes: Sequence[Probe]) -> list[tuple[str, list[Group]]]:
    """What has a panel of its own, all pairs first: its name, and its results at each step."""
    names = probes[0].phenomena
    of_all = [probe.overall for probe in probes]
    return [("all pairs", of_all), *((name, [probe.phenomena[name] for probe in probes]) for name in names)]


def plot_groups(axes: "Axes", steps: Sequence[int], groups: Sequence[Group]) -> None:
    """Plot both accuracies of one panel, and the accuracy of a guess."""
    plot_accuracy(axes, steps, [group.per_token for group in groups], VERMILLION, "--")
    plot_accuracy(axes, steps, [group.summed for group in groups], BLUE, "-")
    axes.axhline(50, color=GREY, linewidth=0.8, linestyle=":")
    axes.grid()


def plot_accuracy(axes: "Axes", steps: Sequence[int], curve: Sequence[Accuracy], color: str, dashes: str) -> None:
    """Plot accuracies in percent with their intervals."""
    values, low, high = ([100 * bound for bound in bounds] for bounds in zip(*curve, strict=True))
    axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
    axes.plot(steps, values, dashes, color=color, linewidth=1.5, marker="o", markersize=3)


def format_steps(axes: "Axes", last: int) -> None:
    """Format the axis of steps, which all panels share."""
    from matplotlib.ticker import EngFormatter, MaxNLocator  # noqa: PLC0415

    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter() if last > MAX_PLAIN_LABEL else "{x:,.0f}")
