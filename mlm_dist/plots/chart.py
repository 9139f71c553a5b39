"""A chart on a page: a plot inside the HTML, in the colours of the reader's light or dark mode."""

import base64
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from mlm_dist.plots.style import BLUE, INK, SKY, new_figure, render

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK_IN_DARK_MODE = "#d6d6d6"


class Chart(NamedTuple):
    """A plot: its title, and an SVG as a data URI."""

    title: str
    uri: str


def new_chart(title: str, size: tuple[float, float], plot: Callable[["Axes"], None]) -> Chart:
    """A chart.

    Args:
        title: its title.
        size: width and height in inches.
        plot: plots into axes.
    """
    with new_figure(*size) as figure:
        axes = figure.subplots()
        plot(axes)
        figure.patch.set_visible(False)
        axes.patch.set_visible(False)
        return Chart(title, as_data_uri(render(figure, "svg").decode()))


def as_data_uri(svg: str) -> str:
    """A plot as a data URI. In the reader's dark mode, its text and its blue are lighter."""
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor").replace(BLUE.lower(), "var(--blue)")
    style = (
        f":root {{ color: {INK}; --blue: {BLUE} }} "
        f"@media (prefers-color-scheme: dark) {{ :root {{ color: {INK_IN_DARK_MODE}; --blue: {SKY} }} }}"
    )
    svg = svg.replace(">", f"><style>{style}</style>", 1)
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
