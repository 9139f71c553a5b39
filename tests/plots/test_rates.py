"""The plot of losses against learning rates."""

import math
from pathlib import Path

import numpy as np
import pytest

from mlm_dist.plots.rates import SIZE, lay_out_rates, save_rates
from mlm_dist.plots.style import new_figure

RATES, LOSSES = [1e-4, 1e-3, 1e-2, 1e-1], [5.0, 4.0, 4.5, math.nan]


def test_finite_losses_are_plotted_and_the_best_rate_is_marked() -> None:
    with new_figure(*SIZE) as figure:
        axes = figure.subplots()
        lay_out_rates(axes, RATES, LOSSES, "optim.lr", 1e-3)
        curve, mark = axes.lines
        assert np.array_equal(curve.get_xydata(), [[1e-4, 5.0], [1e-3, 4.0], [1e-2, 4.5]])
        assert np.array_equal(mark.get_xdata(), [1e-3, 1e-3])
        assert axes.get_xscale() == "log"
        assert axes.get_xlabel() == "optim.lr"
        figure.canvas.draw()
        labels = [label.get_text() for label in axes.get_xticklabels()]
        assert {"0.0001", "0.001", "0.01", "0.1"} <= set(labels)
        assert not any("$" in label for label in labels)
        low, high = axes.get_xlim()
        assert low < 1e-4
        assert high > 1e-1  # the rate without a finite loss is in the range


@pytest.mark.parametrize(("name", "start"), [("rates.png", b"\x89PNG"), ("rates.svg", b"<?xml")])
def test_the_suffix_is_the_format(name: str, start: bytes, tmp_path: Path) -> None:
    save_rates(tmp_path / name, RATES, LOSSES, "optim.lr", 1e-3)
    assert (tmp_path / name).read_bytes().startswith(start)
