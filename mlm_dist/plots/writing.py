"""Pictures as files."""

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
    """Make a folder, and turn the system's refusal to write there into a `UserError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from error


def draw(
    stem: Path, size: tuple[float, float], lay_out: Callable[["Figure", Content], None], content: Content
) -> list[Path]:
    """Draw a picture into a PNG and an SVG.

    Args:
        stem: path of the files, without their suffix.
        size: width and height in inches.
        lay_out: draws a content into a figure.
        content: what to draw.

    Returns:
        The paths.
    """
    paths = []
    with picture(*size) as figure:
        lay_out(figure, content)
        for kind in ("png", "svg"):
            path = stem.with_name(f"{stem.name}.{kind}")
            drawn = render(figure, kind)
            with replacing(path, shared=True) as file:  # the run itself may be at it too
                file.write(drawn)
            paths.append(path)
            figure.set_layout_engine("none")  # what lies where is known now; to find it out takes long
    return paths
