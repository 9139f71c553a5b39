"""Plot docs/schedules.png: `python docs/schedules.py [FILE]`."""

import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from PIL import Image

from mlm_dist.config import OptimConfig
from mlm_dist.plots.style import BLUE, GREEN, GREY, INK, PURPLE, VERMILLION, new_figure, render
from mlm_dist.training.schedule import fit_schedule, learning_rate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (9.0, 6.4)  # inches
SMALL = 9  # points
FEW_STEPS = 10  # a run with fewer gets a marker per step
COLORS_IN_FILE = 64  # enough for lines and text on white, in a file a quarter of the size

STEPS, WARMUP_ITERS, DECAY_FRACTION = 1000, 150, 0.4
COLORS = {"constant": PURPLE, "wsd": BLUE, "cosine": GREEN, "linear": VERMILLION}
NAMES: list[tuple[Literal["constant", "wsd", "cosine", "linear"], tuple[float, float]]] = [
    ("constant", (905, 0.93)),
    ("wsd", (850, 0.52)),
    ("cosine", (475, 0.86)),
    ("linear", (300, 0.7)),
]


class TooShort(NamedTuple):
    """A run that is too short for its schedule.

    Attributes:
        title: its config values, and their effect.
        max_iters: number of steps.
        config: the schedule.
    """

    title: str
    max_iters: int
    config: OptimConfig


TOO_SHORT = [
    TooShort(
        "cosine, warmup_iters 100 of 100\nthe warmup takes half of the run",
        100,
        OptimConfig(lr=1.0, schedule="cosine", warmup_iters=100),
    ),
    TooShort(
        "wsd, warmup_iters 40, decay_fraction 0.8\nthe decay starts after the warmup",
        100,
        OptimConfig(lr=1.0, schedule="wsd", warmup_iters=40, decay_fraction=0.8),
    ),
    TooShort(
        "wsd, warmup_iters 100, max_iters 4\neven four steps reach the peak",
        4,
        OptimConfig(lr=1.0, schedule="wsd", warmup_iters=100, decay_fraction=0.4),
    ),
]


def rates(max_iters: int, config: OptimConfig) -> list[float]:
    """The learning rate of every step."""
    return [learning_rate(step, max_iters, config) for step in range(max_iters)]


def lay_out(figure: "Figure") -> None:
    """Plot the four schedules in a run that is long enough, and below them runs that are too short."""
    panels = figure.subplot_mosaic([["all"] * 3, ["0", "1", "2"]], height_ratios=[1.3, 1])
    draw_schedules(panels["all"])
    for i, run in enumerate(TOO_SHORT):
        draw_fitted(panels[str(i)], run)
    for axes in panels.values():
        axes.set(ylim=(0, 1.22), yticks=[0, 0.5, 1], yticklabels=["0", "", "optim.lr"], xlabel="step")
        axes.grid(True)
    panels["0"].text(99, 1.04, "as configured", color=GREY, ha="right", va="bottom", fontsize=SMALL)
    panels["1"].tick_params(labelleft=False)
    panels["2"].tick_params(labelleft=False)


def draw_schedules(axes: "Axes") -> None:
    """Plot the four schedules, each line with its name, and mark the lengths of warmup and decay."""
    for name, position in NAMES:
        schedule = rates(STEPS, OptimConfig(lr=1.0, schedule=name, warmup_iters=WARMUP_ITERS))
        axes.plot(range(1, STEPS + 1), schedule, color=COLORS[name], linewidth=2)
        axes.annotate(name, position, color=COLORS[name], ha="center", va="center", fontweight="bold")
    draw_length(axes, 0, WARMUP_ITERS, "warmup_iters")
    draw_length(axes, STEPS * (1 - DECAY_FRACTION), STEPS, "decay_fraction of the run (wsd)")
    axes.set(xlim=(0, STEPS), ylabel="learning rate", title=f"max_iters {STEPS}")


def draw_length(axes: "Axes", start: float, end: float, text: str) -> None:
    """Mark a length with a two-headed arrow above the lines, and a label above it."""
    arrow = {"arrowstyle": "<->", "color": INK, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (start, 1.07), (end, 1.07), arrowprops=arrow)
    axes.text((start + end) / 2, 1.09, text, ha="center", va="bottom", fontsize=SMALL)


def draw_fitted(axes: "Axes", run: TooShort) -> None:
    """Plot a schedule as fitted to the run, and, dashed in grey, each shortened phase as configured."""
    _, max_iters, config = run
    warmup_iters, decay_iters = fit_schedule(max_iters, config)
    if warmup_iters < config.warmup_iters:
        axes.plot([0, config.warmup_iters], [0, 1], color=GREY, linestyle="--", linewidth=1.2)
    if config.schedule == "wsd" and decay_iters < config.decay_fraction * max_iters:
        start = max_iters * (1 - config.decay_fraction)
        axes.plot([start, max_iters], [1, 0], color=GREY, linestyle="--", linewidth=1.2)
    axes.plot(
        range(1, max_iters + 1),
        rates(max_iters, config),
        color=COLORS[config.schedule],
        linewidth=2,
        marker="o" if max_iters < FEW_STEPS else "",
        clip_on=False,
    )
    draw_length(axes, 0, warmup_iters, "warmup")
    axes.set(xlim=(0, max_iters))
    axes.set_title(run.title, fontsize=SMALL)


def main() -> None:
    """Plot into the file given on the command line; by default, beside this script."""
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".png")
    with new_figure(*SIZE) as figure:
        lay_out(figure)
        plotted = render(figure, "png")
    Image.open(io.BytesIO(plotted)).convert("RGB").quantize(COLORS_IN_FILE).save(file, optimize=True)


if __name__ == "__main__":
    main()
