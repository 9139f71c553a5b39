"""Writing plots to files."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mlm_dist.errors import UserError
from mlm_dist.files import replacing
from mlm_dist.plots.style import picture, render

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Content = TypeVar("Content")


@contextmanager
def writing_into(folder: Path) -> Iterator[None]:
    """Create a folder for the files that the block writes. An OSError becomes a `UserError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from error


def draw(
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
    with picture(*size) as figure:
        lay_out(figure, content)
        for kind in ("png", "svg"):
            path = stem.with_name(f"{stem.name}.{kind}")
            drawn = render(figure, kind)
            with replacing(path, shared=True) as file:  # the run itself may write it at the same time
                file.write(drawn)
            paths.append(path)
            figure.set_layout_engine("none")  # the layout is known by now, and computing it again is slow
    return paths
