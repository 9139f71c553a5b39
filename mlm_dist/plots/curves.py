"""Curves of one run, or of several runs in the same axes."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from mlm_dist.files import replacing
from mlm_dist.plots.style import BLUE, GREEN, GREY, PALETTE, VERMILLION, new_figure, render, shortened
from mlm_dist.run.history import Column, History, read_history

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

SIZE = (11.0, 10.0)  # inches
PANELS: list[Any] = [
    ["step"] * 6,
    ["tokens"] * 3 + ["seconds"] * 3,
    ["lr"] * 2 + ["grad_norm"] * 2 + ["tokens_per_second"] * 2,
]
HEIGHTS = [3.0, 2.2, 1.7]
LABELS = {"lr": "learning rate", "grad_norm": "gradient norm", "tokens_per_second": "tokens per second"}

MEAN_WINDOW = 1 / 20  # of a run's points
EARLY_FRACTION = 1 / 10  # of the longest run; losses before this may lie outside the axes
CUT_FACTOR = 1.5  # the drop at the start is cut off if showing it would extend the loss axis by this factor
OUTLIER_FACTOR = 2.0  # times the 98th percentile; values above this may lie outside the axes
MAX_MARKERS = 25
MAX_PLAIN_LABEL = 50_000  # steps and tokens; axes beyond this are labelled in k, M, G
MAX_NAME_LENGTH = 90  # in characters
LEGEND_WIDTH = 120  # in characters

Dashes = Literal["-", "--", ":"]
SOURCE_LINE: dict[str, Any] = {"linewidth": 1.2, "marker": "s", "markerfacecolor": "none"}  # unlike validation


class LineStyle(NamedTuple):
    """The line style of a run: the colours of its metrics in training, in validation and on the text of its source."""

    training: str
    validation: str
    source: str
    dashes: Dashes


def save_curves(metrics: Path, file: Path) -> None:
    """Plot the curves of a run as a PNG.

    Args:
        metrics: a metrics.jsonl.
        file: to write; its folder is created.

    Raises:
        UserError: the metrics cannot be read, or have no events yet.
        OSError: the file cannot be written.
    """
    history = read_history(metrics, metrics.parent.resolve().name)
    file.parent.mkdir(exist_ok=True)
    with new_figure(*SIZE) as figure:
        lay_out_curves(figure, [history])
        png = render(figure, "png")
    with replacing(file, shared=True) as content:  # the `plot` command may write this file at the same time
        content.write(png)


def lay_out_curves(figure: "Figure", histories: Sequence[History]) -> None:
    """Plot losses against steps, tokens and time, and below them learning rate, gradient norm and throughput."""
    panels = figure.subplot_mosaic(PANELS, height_ratios=HEIGHTS)
    for against in ("step", "tokens", "seconds"):
        plot_losses(panels[against], histories, against)
    for key in LABELS:
        plot_metric(panels[key], histories, key)
    add_loss_legend(panels["step"], histories)
    names = [shortened(history.name, MAX_NAME_LENGTH) for history in histories]
    if len(names) == 1:
        figure.suptitle(names[0])
    else:
        lines = [new_line(style.training, style.dashes, 2) for style in line_styles(len(names))]
        columns = max(1, LEGEND_WIDTH // (8 + max(map(len, names))))
        figure.legend(lines, names, loc="outside upper center", ncols=min(columns, len(names)))


def plot_losses(axes: "Axes", histories: Sequence[History], against: str) -> None:
    """Plot training losses, faint, with their running mean, and validation losses, also on the text of the source.

    Args:
        axes: to plot into.
        histories: of the runs.
        against: `step`, `tokens` or `seconds`.
    """
    seconds = [second for history in histories for second in history.training["seconds"]]
    scale, unit = unit_of_time(seconds) if against == "seconds" else (1.0, "")
    for history, style in zip(histories, line_styles(len(histories)), strict=True):
        training, evaluations = history.training, history.evaluations
        x, losses = training[against] / scale, training["loss"]
        axes.plot(x, losses, color=style.training, linewidth=0.8, alpha=0.35)
        axes.plot(x, running_mean(losses), style.dashes, color=style.training, linewidth=1.2, marker=point_marker(x))
        x, every = evaluations[against] / scale, max(1, len(evaluations["step"]) // MAX_MARKERS)
        validation: dict[str, Any] = {"linestyle": style.dashes, "markersize": 4, "markevery": every}
        axes.plot(x, evaluations["val_loss"], color=style.validation, linewidth=2, marker="o", **validation)
        for losses in history.source_losses.values():
            axes.plot(x, losses, color=style.source, **SOURCE_LINE, **validation)
    limit_loss_axis(axes, histories)
    axes.set_ylabel("loss (nats per token)" if against == "step" else "loss")
    axes.yaxis.set_major_formatter("{x:g}")
    finish_axes(axes, against, f"training time ({unit})" if unit else against)


def plot_metric(axes: "Axes", histories: Sequence[History], key: str) -> None:
    """Plot one metric of `LABELS` against the step."""
    from matplotlib.ticker import EngFormatter  # noqa: PLC0415

    for history, style in zip(histories, line_styles(len(histories)), strict=True):
        steps = history.training["step"]
        marker = point_marker(steps)
        axes.plot(steps, history.training[key], style.dashes, color=style.training, linewidth=1, marker=marker)
    values = finite([history.training[key] for history in histories])
    top = min(values.max(), OUTLIER_FACTOR * np.quantile(values, 0.98)) if values.size else 0
    axes.set_ylim(0, 1.05 * top or 1)
    axes.set_ylabel(LABELS[key])
    axes.yaxis.set_major_formatter(EngFormatter() if key == "tokens_per_second" else "{x:g}")
    finish_axes(axes, "step", "step")


def finish_axes(axes: "Axes", against: str, label: str) -> None:
    """Add the grid and format the x-axis. Axes without any finite point are marked as not recorded."""
    from matplotlib.ticker import EngFormatter, MaxNLocator  # noqa: PLC0415

    axes.grid()
    axes.set_xlabel(label)
    right = max(axes.get_xlim()[1], 1)
    axes.set_xlim(-0.01 * right, right)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=against != "seconds", steps=[1, 2, 2.5, 5, 10]))
    if against == "seconds":
        axes.xaxis.set_major_formatter("{x:g}")
    else:
        axes.xaxis.set_major_formatter(EngFormatter() if right > MAX_PLAIN_LABEL else "{x:,.0f}")
    if not any(np.isfinite(line.get_xydata()).all(axis=1).any() for line in axes.lines):
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", va="center", color=GREY)


def limit_loss_axis(axes: "Axes", histories: Sequence[History]) -> None:
    """Limit the loss axis so that the steep drop of the first losses does not squash the rest.

    The last loss of every run stays visible, even if the run has only just started.
    """
    curves = [(h.training["step"], running_mean(h.training["loss"])) for h in histories]
    curves += [
        (h.evaluations["step"], losses)
        for h in histories
        for losses in (h.evaluations["val_loss"], *h.source_losses.values())
    ]
    early_steps = EARLY_FRACTION * max(step for steps, _ in curves for step in steps)
    losses = finite([values for _, values in curves])
    later = finite([np.append(values[steps >= early_steps], values[-1:]) for steps, values in curves])
    if not later.size:
        return
    bottom, top, highest = losses.min(), later.max(), losses.max()
    if highest - bottom > CUT_FACTOR * (top - bottom) > 0:
        margin = 0.05 * (top - bottom)
        axes.set_ylim(bottom - margin, top + margin)
        axes.text(0, 1.01, f"↑ from {highest:.1f}", transform=axes.transAxes, va="bottom", color=GREY, fontsize="small")


def add_loss_legend(axes: "Axes", histories: Sequence[History]) -> None:
    """Add a legend above the axes that distinguishes training, validation, and validation on the source's text."""
    (style,) = line_styles(1) if len(histories) == 1 else [LineStyle(GREY, GREY, GREY, "-")]
    lines, labels = [new_line(style.training, "-", 1.2)], ["training"]
    if any(history.evaluations["step"].size for history in histories):
        lines.append(new_line(style.validation, "-", 2, marker="o", markersize=4))
        labels.append("validation")
    if any(history.source_losses for history in histories):
        lines.append(new_line(style.source, "-", **SOURCE_LINE, markersize=4))
        labels.append("text of the source")
    axes.legend(lines, labels, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderaxespad=0.2)


def new_line(color: str, dashes: Dashes, linewidth: float, **marker: Any) -> "Line2D":
    """A line for a legend."""
    from matplotlib.lines import Line2D  # noqa: PLC0415

    return Line2D([], [], color=color, linestyle=dashes, linewidth=linewidth, **marker)


def line_styles(count: int) -> list[LineStyle]:
    """Line styles for this many runs.

    A single run has one colour for training, one for validation, and one for the text of its source. Several runs have
    one colour each, and other dashes once the colours are used up.
    """
    if count == 1:
        return [LineStyle(BLUE, VERMILLION, GREEN, "-")]
    dashes: tuple[Dashes, ...] = ("-", "--", ":")
    styles = itertools.cycle(itertools.product(dashes, PALETTE))
    return [LineStyle(color, color, color, line) for line, color in itertools.islice(styles, count)]


def running_mean(values: Column) -> Column:
    """The mean of the values in a window around each value; values that are not finite are ignored.

    The window is cut off at the end. Near the start it shrinks on both sides, so that the mean follows a steep drop.
    """
    count, indices = len(values), np.arange(len(values))
    half = int(count * MEAN_WINDOW / 2)
    first, last = np.maximum(indices - half, 0), np.minimum(indices + half + 1, count)
    last = np.minimum(last, 2 * indices + 1)  # near the start, as many values after as before
    known = np.isfinite(values)
    sums = np.append(0, np.cumsum(np.where(known, values, 0)))
    counts = np.append(0, np.cumsum(known))
    with np.errstate(invalid="ignore"):  # no finite value in the window
        means: Column = (sums[last] - sums[first]) / (counts[last] - counts[first])
    return means


def unit_of_time(seconds: Sequence[float]) -> tuple[float, str]:
    """A unit in which the longest of some times has few digits: its length in seconds, and its symbol."""
    longest = max((second for second in seconds if np.isfinite(second)), default=0.0)
    units = [(1.0, "s"), (60.0, "min"), (3600.0, "h")]
    return next((unit for unit in units if longest < 180 * unit[0]), units[-1])


def finite(arrays: Sequence[Column]) -> Column:
    """All finite values, in one array."""
    values: Column = np.concatenate([*arrays, np.empty(0)])
    return values[np.isfinite(values)]


def point_marker(values: Column) -> str:
    """The marker of a line: a line of a single point is invisible without one."""
    return "o" if len(values) == 1 else ""
