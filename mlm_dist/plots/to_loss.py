"""The validation losses of contenders against tokens and time, down to a target."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlm_dist.files import replacing
from mlm_dist.plots.curves import unit_of_time
from mlm_dist.plots.style import GREY, PALETTE, new_figure, render
from mlm_dist.run.history import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = (11.0, 4.5)  # inches


def save_to_loss(file: Path, histories: Mapping[str, Sequence[History]], target: float) -> None:
    """Plot into a PNG.

    Args:
        file: to write.
        histories: of the runs of each contender.
        target: the validation loss that they are trained to, in nats.

    Raises:
        OSError: it cannot be written.
    """
    with new_figure(*SIZE) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        longest = [history.evaluations["seconds"].max(initial=0) for runs in histories.values() for history in runs]
        scale, unit = unit_of_time(longest)
        plot_losses(left, histories, target, "tokens", 1e6)
        plot_losses(right, histories, target, "seconds", scale)
        left.set(xlabel="million tokens", ylabel="validation loss (nats per token)")
        right.set_xlabel(f"training time ({unit})")
        figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=len(histories) + 1)
        content = render(figure, "png")
    with replacing(file) as opened:
        opened.write(content)


def plot_losses(
    axes: "Axes", histories: Mapping[str, Sequence[History]], target: float, against: str, scale: float
) -> None:
    """Plot the curve of each run, in the colour of its contender, and the target."""
    for index, (name, runs) in enumerate(histories.items()):
        for run in runs:
            x, losses = run.evaluations[against] / scale, run.evaluations["val_loss"]
            color = PALETTE[index % len(PALETTE)]
            axes.plot(x, losses, color=color, linewidth=1.2, alpha=0.8, label=name if run is runs[0] else None)
    axes.axhline(target, color=GREY, linestyle=":", label=f"target {target:g}" if against == "tokens" else None)
    axes.grid()
