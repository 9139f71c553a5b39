"""The validation loss of short runs against their learning rate."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlm_dist.files import replacing
from mlm_dist.plots.style import BLUE, VERMILLION, new_figure, render

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = (6.4, 4.0)  # inches


def save_rates(file: Path, rates: Sequence[float], losses: Sequence[float], key: str, best: float) -> None:
    """Plot into a PNG, or into an SVG if the file is named so.

    Args:
        file: to write.
        rates: the learning rates.
        losses: the validation loss of each, in nats. One that is not finite has no point.
        key: the config key of the rate.
        best: the rate to mark.

    Raises:
        OSError: it cannot be written.
    """
    with new_figure(*SIZE) as figure:
        lay_out_rates(figure.subplots(), rates, losses, key, best)
        content = render(figure, "svg" if file.suffix == ".svg" else "png")
    with replacing(file, shared=True) as opened:
        opened.write(content)


def lay_out_rates(axes: "Axes", rates: Sequence[float], losses: Sequence[float], key: str, best: float) -> None:
    """Plot losses against rates, with the best rate marked."""
    finite = [(rate, loss) for rate, loss in zip(rates, losses, strict=True) if np.isfinite(loss)]
    axes.plot(*zip(*finite, strict=True), color=BLUE, marker="o", markersize=5)
    axes.axvline(best, color=VERMILLION, linestyle=":", label=f"lowest at {best:.3g}")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")  # the default one needs parsed math
    axes.set_xlim(0.8 * min(rates), 1.25 * max(rates))
    axes.set_xlabel(key)
    axes.set_ylabel("validation loss (nats per token)")
    axes.grid()
    axes.legend()
