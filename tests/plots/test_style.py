import warnings
from typing import Literal
from xml.etree import ElementTree

import matplotlib
import pytest

from mlm_dist.plots.style import new_figure, printable, render, shortened


def plot(title: str, kind: Literal["png", "svg"] = "svg") -> bytes:
    with new_figure(3, 2) as figure:
        axes = figure.subplots()
        axes.plot([1, 2, 3])
        axes.set_title(title)
        return render(figure, kind)


def texts_of(svg: bytes) -> list[str]:
    return ["".join(text.itertext()) for text in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_special_characters_in_a_text_are_not_interpreted() -> None:
    for title in ("$x$", "a_b^c \\frac{1}{2}", '<b>&amp;"', "😀 שלום 日本"):
        assert title in texts_of(plot(title))


def test_characters_without_a_font_cause_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plot("日本 \U000f0000", "png").startswith(b"\x89PNG")


def test_control_characters_and_invalid_utf8_are_escaped() -> None:
    bad = "".join(map(chr, range(32))) + "\x7f\udcff\u2028"
    title = printable(f"a{bad}é b")
    assert title.startswith("a\\x00\\x01") and title.endswith("\\x7f\\udcff\\u2028é b")
    assert title in texts_of(plot(title))


def test_the_same_plot_gives_the_same_file() -> None:
    assert plot("a") == plot("a")
    assert b"<metadata" not in plot("a")


def test_the_users_matplotlib_settings_are_neither_used_nor_changed() -> None:
    expected = plot("a")
    with matplotlib.rc_context({"axes.grid": True, "font.size": 30, "svg.fonttype": "path", "text.color": "red"}):
        assert plot("a") == expected
        assert matplotlib.rcParams["font.size"] == 30


@pytest.mark.parametrize(
    ("text", "expected"),
    [("short", "short"), ("just ten!!", "just ten!!"), ("more than ten", "more … ten"), ("a\nb", "a\\nb")],
)
def test_the_middle_of_a_long_text_is_replaced_by_an_ellipsis(text: str, expected: str) -> None:
    assert shortened(text, 10) == expected
    assert len(shortened(text, 10)) <= 10
