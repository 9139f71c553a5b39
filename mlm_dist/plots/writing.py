"""Writing plots to files."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mlm_dist.errors import UserError
from mlm_dist.files import replacing
from mlm_dist.plots.style import new_figure, render

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Content = TypeVar("Content")


@contextmanager
def output_folder(folder: Path) -> Iterator[None]:
    """Create a folder for the files that the block writes. An OSError becomes a `UserError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from error


def save_plot(
    stem: Path, size: tuple[float, float], lay_out: Callable[["Figure", Content], None], content: Content
) -> list[Path]:
    """Plot into a PNG and an SVG.

    Args:
        stem: path of the files, without their suffix.
        size: width and height in inches.
        lay_out: plots content into a figure.
        content: what to plot.

    Returns:
        The paths of the files.
    """
    paths = []
    with new_figure(*size) as figure:
        lay_out(figure, content)
        for kind in ("png", "svg"):
            path = stem.with_name(f"{stem.name}.{kind}")
            rendered = render(figure, kind)
            with replacing(path, shared=True) as file:  # the run itself may write this file at the same time
                file.write(rendered)
            paths.append(path)
            figure.set_layout_engine("none")  # the layout is known by now, and computing it again is slow
    return paths
