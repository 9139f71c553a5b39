"""How every picture is drawn: one style, colours for all eyes, no screen."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette ("Color Universal Design", 2008), told apart by colour-blind eyes; but for its yellow, which
# is too pale for a line on white.
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
)
GREY = "#888888"
INK = "#222222"  # of text and axes

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
    "text.parse_math": False,  # a dollar in a text is a dollar
    "svg.fonttype": "none",  # text stays text: to be searched, and drawn with the reader's own fonts
    "svg.hashsalt": "mlm_dist",  # the same picture is the same file
}
PIXELS_PER_INCH = 120


@contextmanager
def picture(width: float, height: float) -> Iterator["Figure"]:
    """Give an empty figure of a size in inches, to be drawn and rendered inside the block."""
    # Imported here: the import takes as long as a good part of a run's start, and drawing comes last in it.
    from matplotlib import style  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415 (pyplot's figures want a screen and have to be closed)

    with style.context(["default", STYLE]):  # whatever the person's own matplotlibrc says
        yield Figure(figsize=(width, height), layout="constrained")


def render(figure: "Figure", kind: Literal["png", "svg"]) -> bytes:
    """The picture as the content of a file."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        # A character that no font here has is drawn as a box, and as itself in an SVG where the reader has one.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type")) if kind == "svg" else None
        figure.savefig(content, format=kind, dpi=PIXELS_PER_INCH, metadata=metadata)
    return content.getvalue()


def printable(text: str) -> str:
    """A text with an escape for each character that cannot be drawn: line breaks, control characters, broken UTF-8."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shortened(text: str, longest: int) -> str:
    """A text of at most so many characters, all of which can be drawn; what is too much is left out of its middle."""
    text, half = printable(text), longest // 2
    return text if len(text) <= longest else f"{text[:half]}…{text[len(text) - longest + half + 1 :]}"
