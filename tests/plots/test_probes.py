import base64
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import matplotlib.image
import numpy as np
import pytest

from mlm_dist.errors import UserError
from mlm_dist.inference.probing import Accuracy, Group, Probe
from mlm_dist.plots.probes import chart_probes, lay_out_probes, save_probes, size_of_probes
from mlm_dist.plots.style import BLUE, new_figure


def probe_at(step: int, value: float, within_word: bool = False) -> Probe:
    group = Group(10, Accuracy(value, value - 0.1, value + 0.1), Accuracy(value / 2, 0.0, value))
    names = ["binding", "a$b$", "ellipsis", "islands", "npi"]
    return Probe(step, group, dict.fromkeys(names, group), {"file": group}, 0, within_word)


def test_learning_curves_are_written_as_a_table_and_as_pictures(tmp_path: Path) -> None:
    paths = save_probes(tmp_path / "out", [probe_at(10, 0.4, True), probe_at(20, 0.6, True)])
    assert [path.name for path in paths] == [f"probe_within_word.{kind}" for kind in ("json", "png", "svg")]
    assert sorted((tmp_path / "out").iterdir()) == sorted(paths)
    first, second = json.loads(paths[0].read_text())
    assert (first["step"], second["step"], second["within_word"]) == (10, 20, True)
    assert second["phenomena"]["binding"]["summed"] == {"value": 0.6, "low": 0.5, "high": 0.7}
    assert matplotlib.image.imread(paths[1])[..., :3].std() > 0.05
    svg = ElementTree.fromstring(paths[2].read_text(encoding="utf-8"))
    texts = {"".join(text.itertext()) for text in svg.iter("{http://www.w3.org/2000/svg}text")}
    assert {"all pairs", "binding", "a$b$", "islands", "step", "accuracy (%)", "sum over tokens"} <= texts


def test_each_panel_has_the_accuracies_of_its_phenomenon_in_percent() -> None:
    probes = [probe_at(10, 0.4), probe_at(20, 0.6)]
    with new_figure(*size_of_probes(probes)) as figure:
        lay_out_probes(figure, probes)
        panels = [axes for axes in figure.axes if axes.axison]
        assert len(panels) == 6
        for axes in panels:
            (curve,) = [np.asarray(line.get_xydata()) for line in axes.lines if line.get_color() == BLUE]
            assert curve.tolist() == [[10, pytest.approx(40)], [20, pytest.approx(60)]]


def test_the_charts_of_a_page_are_on_the_same_scale() -> None:
    low, high = (Group(10, Accuracy(v, v, v), Accuracy(v, v, v)) for v in (0.3, 0.8))
    probes = [Probe(step, low, {"high": high}, {}, 0, within_word=False) for step in (10, 20)]
    charts = chart_probes(probes)
    assert [chart.title for chart in charts] == ["all pairs", "high"]
    heights = [
        [float(tick) for tick in re.findall(r">(\d+)</text>", base64.b64decode(chart.uri.partition(",")[2]).decode())]
        for chart in charts
    ]
    assert heights[0] == heights[1]
    assert {40, 60, 80} <= set(heights[0])


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file cannot be written: File exists"):
        save_probes(tmp_path / "file", [probe_at(10, 0.4)])
