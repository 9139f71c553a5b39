"""The style of all plots: colours that colour-blind readers can distinguish, rendered without a display."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The palette of Okabe and Ito ("Color Universal Design", 2008), which colour-blind readers can distinguish. Its yellow
# is left out, because it is too pale for a line on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK = PALETTE
GREY = "#888888"
INK = "#222222"  # colour of text and axes

STYLE: dict[Any, Any] = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.h_pad": 0.08,  # inches
    "figure.constrained_layout.w_pad": 0.08,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.parse_math": False,  # a dollar sign in a text is not math
    "svg.fonttype": "none",  # text stays text: searchable, and rendered in the reader's own fonts
    "svg.hashsalt": "mlm_dist",  # the same plot gives the same file
}
PIXELS_PER_INCH = 120


@contextmanager
def new_figure(width: float, height: float) -> Iterator["Figure"]:
    """Yield an empty figure of a size in inches, to be plotted into and rendered inside the block."""
    # Imported here, because the import is slow and a run plots only at its end.
    from matplotlib import style  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415 (pyplot's figures need a display and have to be closed)

    with style.context(["default", STYLE]):  # independent of the user's own matplotlibrc
        yield Figure(figsize=(width, height), layout="constrained")


def render(figure: "Figure", kind: Literal["png", "svg"]) -> bytes:
    """The content of a file with the figure."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        # In a PNG, a character that no local font has is a box. An SVG is rendered with the fonts of the reader.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type")) if kind == "svg" else None
        figure.savefig(content, format=kind, dpi=PIXELS_PER_INCH, metadata=metadata)
    return content.getvalue()


def printable(text: str) -> str:
    """Escape the characters of a text that cannot be shown: line breaks, control characters, invalid UTF-8."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shortened(text: str, max_length: int) -> str:
    """Shorten a text to at most `max_length` printable characters by replacing its middle with an ellipsis."""
    text, half = printable(text), max_length // 2
    return text if len(text) <= max_length else f"{text[:half]}…{text[len(text) - max_length + half + 1 :]}"
