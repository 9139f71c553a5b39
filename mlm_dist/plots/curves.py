"""Curves of one run, or of several laid over each other."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from mlm_dist.files import replacing
from mlm_dist.plots.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION, picture, render, shortened
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

MEAN_OVER = 1 / 20  # of a run's points
EARLY = 1 / 10  # of the longest run: losses from before need not fit into the picture
WORTH_CUTTING = 1.5  # the fall at the start is cut off if it would make the picture so many times as high
HIGHEST_OUTLIER = 2.0  # times the 98th percentile; what is above goes out of the picture
MOST_MARKERS = 25
MOST_WRITTEN_OUT = 50_000  # steps and tokens; more are counted in k, M, G
LONGEST_NAME = 90
LEGEND_WIDTH = 120  # characters

Dashes = Literal["-", "--", ":"]


class Look(NamedTuple):
    """How the lines of a run are drawn: the colours of training and held-out figures, and the line style of both."""

    training: str
    held_out: str
    dashes: Dashes


def draw_curves(metrics: Path, file: Path) -> None:
    """Draw the curves of a run into a PNG.

    Args:
        metrics: a metrics.jsonl.
        file: to write; its folder is made.
    """
    history = read_history(metrics, metrics.parent.resolve().name)
    file.parent.mkdir(exist_ok=True)
    with picture(*SIZE) as figure:
        lay_out_curves(figure, [history])
        drawn = render(figure, "png")
    with replacing(file, shared=True) as content:  # `plot` may be at it too
        content.write(drawn)


def lay_out_curves(figure: "Figure", histories: Sequence[History]) -> None:
    """Draw losses against steps, tokens and time, and below them learning rate, gradient norm and throughput."""
    panels = figure.subplot_mosaic(PANELS, height_ratios=HEIGHTS)
    for against in ("step", "tokens", "seconds"):
        draw_losses(panels[against], histories, against)
    for key in LABELS:
        draw_figure(panels[key], histories, key)
    add_legend_of_kinds(panels["step"], histories)
    names = [shortened(history.name, LONGEST_NAME) for history in histories]
    if len(names) == 1:
        figure.suptitle(names[0])
    else:
        lines = [new_line(look.training, look.dashes, 2) for look in looks(len(names))]
        columns = max(1, LEGEND_WIDTH // (8 + max(map(len, names))))
        figure.legend(lines, names, loc="outside upper center", ncols=min(columns, len(names)))


def draw_losses(axes: "Axes", histories: Sequence[History], against: str) -> None:
    """Draw training losses, faint, with their running mean, and held-out losses.

    Args:
        axes: to draw into.
        histories: of the runs.
        against: `step`, `tokens` or `seconds`.
    """
    seconds = [second for history in histories for second in history.training["seconds"]]
    scale, unit = unit_of_time(seconds) if against == "seconds" else (1.0, "")
    for history, look in zip(histories, looks(len(histories)), strict=True):
        training, evaluations = history.training, history.evaluations
        x, losses = training[against] / scale, training["loss"]
        axes.plot(x, losses, color=look.training, linewidth=0.8, alpha=0.35)
        axes.plot(x, running_mean(losses), look.dashes, color=look.training, linewidth=1.2, marker=dot(x))
        axes.plot(
            evaluations[against] / scale,
            evaluations["val_loss"],
            look.dashes,
            color=look.held_out,
            linewidth=2,
            marker="o",
            markersize=4,
            markevery=max(1, len(evaluations["step"]) // MOST_MARKERS),
        )
    cut_off_the_start(axes, histories)
    axes.set_ylabel("loss (nats a token)" if against == "step" else "loss")
    axes.yaxis.set_major_formatter("{x:g}")
    finish_axes(axes, against, f"time in training ({unit})" if unit else against)


def draw_figure(axes: "Axes", histories: Sequence[History], key: str) -> None:
    """Draw one of `LABELS` against the step."""
    from matplotlib.ticker import EngFormatter  # noqa: PLC0415

    for history, look in zip(histories, looks(len(histories)), strict=True):
        steps = history.training["step"]
        axes.plot(steps, history.training[key], look.dashes, color=look.training, linewidth=1, marker=dot(steps))
    values = finite([history.training[key] for history in histories])
    top = min(values.max(), HIGHEST_OUTLIER * np.quantile(values, 0.98)) if values.size else 0
    axes.set_ylim(0, 1.05 * top or 1)
    axes.set_ylabel(LABELS[key])
    axes.yaxis.set_major_formatter(EngFormatter() if key == "tokens_per_second" else "{x:g}")
    finish_axes(axes, "step", "step")


def finish_axes(axes: "Axes", against: str, label: str) -> None:
    """Draw the grid and what belongs to the x-axis; say so where there is nothing to see."""
    from matplotlib.ticker import EngFormatter, MaxNLocator  # noqa: PLC0415

    axes.grid()
    axes.set_xlabel(label)
    right = max(axes.get_xlim()[1], 1)
    axes.set_xlim(-0.01 * right, right)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=against != "seconds", steps=[1, 2, 2.5, 5, 10]))
    if against == "seconds":
        axes.xaxis.set_major_formatter("{x:g}")
    else:
        axes.xaxis.set_major_formatter(EngFormatter() if right > MOST_WRITTEN_OUT else "{x:,.0f}")
    if not any(np.isfinite(line.get_xydata()).all(axis=1).any() for line in axes.lines):
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", va="center", color=GREY)


def cut_off_the_start(axes: "Axes", histories: Sequence[History]) -> None:
    """Let the first losses, which fall quickly from a height, go out of the picture where they would squash the rest.

    The last loss of every run stays in it, also of one that has only begun.
    """
    curves = [(h.training["step"], running_mean(h.training["loss"])) for h in histories]
    curves += [(h.evaluations["step"], h.evaluations["val_loss"]) for h in histories]
    begun = EARLY * max(step for steps, _ in curves for step in steps)
    losses = finite([values for _, values in curves])
    later = finite([np.append(values[steps >= begun], values[-1:]) for steps, values in curves])
    if not later.size:
        return
    bottom, top, highest = losses.min(), later.max(), losses.max()
    if highest - bottom > WORTH_CUTTING * (top - bottom) > 0:
        margin = 0.05 * (top - bottom)
        axes.set_ylim(bottom - margin, top + margin)
        axes.text(0, 1.01, f"↑ from {highest:.1f}", transform=axes.transAxes, va="bottom", color=GREY, fontsize="small")


def add_legend_of_kinds(axes: "Axes", histories: Sequence[History]) -> None:
    """Say above the axes which lines are of the training and which of the held-out text."""
    (look,) = looks(1) if len(histories) == 1 else [Look(GREY, GREY, "-")]
    lines, kinds = [new_line(look.training, "-", 1.2)], ["training"]
    if any(history.evaluations["step"].size for history in histories):
        lines.append(new_line(look.held_out, "-", 2, marker="o", markersize=4))
        kinds.append("held out")
    axes.legend(lines, kinds, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2)


def new_line(color: str, dashes: Dashes, width: float, **marker: Any) -> "Line2D":
    """A line for a legend."""
    from matplotlib.lines import Line2D  # noqa: PLC0415

    return Line2D([], [], color=color, linestyle=dashes, linewidth=width, **marker)


def looks(count: int) -> list[Look]:
    """How to draw so many runs: one in a colour for training and one for held out, several in a colour each."""
    if count == 1:
        return [Look(BLUE, VERMILLION, "-")]
    colors = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
    dashes: tuple[Dashes, ...] = ("-", "--", ":")
    styles = itertools.cycle(itertools.product(dashes, colors))
    return [Look(color, color, line) for line, color in itertools.islice(styles, count)]


def running_mean(values: Column) -> Column:
    """The mean of the values around each, or up to the end of them; near the start of fewer, so that it follows a fall.

    Values that are NaN are left out.
    """
    count, places = len(values), np.arange(len(values))
    half = int(count * MEAN_OVER / 2)
    first, last = np.maximum(places - half, 0), np.minimum(places + half + 1, count)
    last = np.minimum(last, 2 * places + 1)  # as many after a value as before it
    known = np.isfinite(values)
    sums = np.append(0, np.cumsum(np.where(known, values, 0)))
    counts = np.append(0, np.cumsum(known))
    with np.errstate(invalid="ignore"):  # nothing is known around
        means: Column = (sums[last] - sums[first]) / (counts[last] - counts[first])
    return means


def unit_of_time(seconds: Sequence[float]) -> tuple[float, str]:
    """A unit, in seconds and by its symbol, in which the longest of some times has few digits."""
    longest = max((second for second in seconds if np.isfinite(second)), default=0.0)
    units = [(1.0, "s"), (60.0, "min"), (3600.0, "h")]
    return next((unit for unit in units if longest < 180 * unit[0]), units[-1])


def finite(arrays: Sequence[Column]) -> Column:
    """All values that are finite numbers, in one array."""
    values: Column = np.concatenate([*arrays, np.empty(0)])
    return values[np.isfinite(values)]


def dot(values: Column) -> str:
    """The marker of a line: a line of one point cannot be seen without."""
    return "o" if len(values) == 1 else ""
