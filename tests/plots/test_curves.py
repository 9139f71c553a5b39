import itertools
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mlm_dist.plots.curves import SIZE, lay_out_curves, line_styles, running_mean, save_curves
from mlm_dist.plots.style import new_figure, render
from mlm_dist.run.history import read_histories
from mlm_dist.run.origin import Origin


def test_a_run_is_plotted(run_dir: Path) -> None:
    image = matplotlib.image.imread(run_dir / "plots/curves.png")
    height, width, _ = image.shape
    assert height > 800
    assert width > 800
    assert image[..., :3].std() > 0.05  # the image is not just white


def test_a_run_with_a_single_event_is_plotted(tmp_path: Path) -> None:
    event = {"step": 1, "loss": 2.0, "lr": 1e-3, "tokens_per_second": 5.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(event) + "\n")
    save_curves(tmp_path / "metrics.jsonl", tmp_path / "plots/curves.png")
    assert (tmp_path / "plots/curves.png").stat().st_size > 1000


def test_a_run_with_a_value_that_is_not_finite_is_plotted(tmp_path: Path) -> None:
    events = [{"step": i, "loss": None if i == 2 else 2.0, "lr": 1e-3, "tokens_per_second": 5.0} for i in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    save_curves(tmp_path / "metrics.jsonl", tmp_path / "plots/curves.png")


def write_run(folder: Path, steps: int, loss: Callable[[int], float], every: int = 10, evaluate: int = 50) -> Path:
    """Write the metrics of a run with 1000 tokens and half a second per step."""
    folder.mkdir(parents=True)
    lines = [{"step": 0, "val_loss": loss(0), "val_accuracy": 0.0}]
    for step in range(every, steps + 1, every):
        speed = {"tokens": 1000 * step, "seconds": step / 2, "tokens_per_second": 2000.0}
        lines.append({"step": step, "loss": loss(step), "lr": 1e-3, "grad_norm": 0.5} | speed)
        if step % evaluate == 0:
            lines.append({"step": step, "val_loss": loss(step), "val_accuracy": 0.1})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def quick_then_slow(step: int) -> float:
    """A loss that falls from 11 to 7 in 50 steps, and then slowly to 5."""
    return max(11 - step / 12.5, 7 - max(step - 50, 0) / 1000)


def plot(figure: Figure, *runs: Path) -> dict[str, Axes]:
    """Plot the curves of runs; return the panels by name."""
    lay_out_curves(figure, read_histories(runs))
    return {str(axes.get_label()): axes for axes in figure.axes}


def last_point(line: Line2D) -> tuple[float, float]:
    x, y = np.asarray(line.get_xydata())[-1]
    return float(x), float(y)


@pytest.fixture
def figure() -> Iterator[Figure]:
    with new_figure(*SIZE) as figure:
        yield figure


def test_losses_are_plotted_against_steps_tokens_and_time(tmp_path: Path, figure: Figure) -> None:
    panels = plot(figure, write_run(tmp_path / "run", 2000, quick_then_slow))
    for name, last in (("step", 2000), ("tokens", 2_000_000), ("seconds", 1000 / 60)):
        raw, mean, validation = map(last_point, panels[name].lines)
        assert raw[0] == mean[0] == validation[0] == pytest.approx(last)
        assert validation[1] == raw[1] == pytest.approx(5.05)
    assert panels["seconds"].get_xlabel() == "training time (min)"


def test_learning_rate_gradient_norm_and_throughput_are_plotted(tmp_path: Path, figure: Figure) -> None:
    panels = plot(figure, write_run(tmp_path / "run", 200, quick_then_slow))
    values = {name: last_point(panels[name].lines[0])[1] for name in ("lr", "grad_norm", "tokens_per_second")}
    assert values == {"lr": 1e-3, "grad_norm": 0.5, "tokens_per_second": 2000}


def test_the_drop_at_the_start_does_not_squash_the_rest(tmp_path: Path, figure: Figure) -> None:
    panels = plot(figure, write_run(tmp_path / "run", 2000, quick_then_slow))
    for name in ("step", "tokens", "seconds"):
        bottom, top = panels[name].get_ylim()
        assert 4.5 < bottom < 5.05
        assert 6.85 < top < 7.1
        assert "↑ from 11.0" in [text.get_text() for text in panels[name].texts]


def test_a_steady_decrease_is_shown_from_its_start(tmp_path: Path, figure: Figure) -> None:
    panels = plot(figure, write_run(tmp_path / "run", 2000, lambda step: 11 - step / 500))
    assert panels["step"].get_ylim()[1] > 11
    assert not panels["step"].texts


def test_a_run_that_has_just_started_is_visible_beside_a_long_one(tmp_path: Path, figure: Figure) -> None:
    long = write_run(tmp_path / "long", 2000, quick_then_slow)
    panels = plot(figure, long, write_run(tmp_path / "new", 20, quick_then_slow))
    assert panels["step"].get_ylim()[1] > quick_then_slow(20)


def test_several_runs_have_one_colour_each_and_a_legend_above_the_panels(tmp_path: Path, figure: Figure) -> None:
    runs = [write_run(tmp_path / folder / "run", 200, quick_then_slow) for folder in ("a", "b", "_$c$")]
    panels = plot(figure, *runs)
    colors = [line.get_color() for line in panels["step"].lines]
    assert len(set(colors)) == 3
    render(figure, "png")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a/run", "b/run", "_$c$/run"]
    assert [line.get_color() for line in legend.get_lines()] == colors[::3]
    legend_of_styles = panels["step"].get_legend()
    assert legend_of_styles
    for box in (legend.get_window_extent(), legend_of_styles.get_window_extent()):
        assert box.y0 >= panels["step"].get_window_extent().y1


def forgetting_run(folder: Path) -> Path:
    """Write the metrics of a run whose loss on the text of its source rises from 9 to 13."""
    run = write_run(folder, 200, quick_then_slow)
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    events = [event | ({"val_loss/old": 9 + event["step"] / 50} if "val_loss" in event else {}) for event in events]
    (run / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    Origin("runs/source", 1000, "digest", {"old": ["/corpora/old", "digest"]}).write(run / "origin.json")
    return run


@pytest.mark.parametrize("count", [1, 2])
def test_the_loss_on_the_text_of_the_source_is_plotted_where_it_was_measured(
    tmp_path: Path, figure: Figure, count: int
) -> None:
    runs = [forgetting_run(tmp_path / "forgets"), write_run(tmp_path / "plain", 200, quick_then_slow)][:count]
    panels = plot(figure, *runs)
    for name, end in (("step", 200), ("tokens", 200_000), ("seconds", 100)):
        line = panels[name].lines[3]
        assert last_point(line) == (end, 13)
        assert line.get_marker() == "s"
        assert panels[name].get_ylim()[1] > 13
        assert len(panels[name].lines) == 4 + 3 * (count - 1)
    legend = panels["step"].get_legend()
    assert legend
    assert [text.get_text() for text in legend.get_texts()] == ["training", "validation", "text of the source"]
    assert [line.get_marker() for line in legend.get_lines()] == ["None", "o", "s"]
    if count == 1:
        assert [line.get_color() for line in legend.get_lines()] == [
            line.get_color() for line in panels["step"].lines[1:]
        ]


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 40, 5000, 200_000])
def test_tick_labels_are_plain_and_do_not_overlap(tmp_path: Path, figure: Figure, steps: int) -> None:
    every = max(1, steps // 100)
    panels = plot(figure, write_run(tmp_path / "run", steps, quick_then_slow, every, every * 10))
    render(figure, "png")
    for name, axes in panels.items():
        for axis in (axes.xaxis, axes.yaxis):
            assert not axis.get_offset_text().get_text(), name
            low, high = sorted(axis.get_view_interval())
            ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            labels = [tick.label1 for tick in ticks]
            assert len({label.get_text() for label in labels}) == len(labels) >= 2, name
            boxes = [label.get_window_extent() for label in labels]
            assert not any(one.overlaps(other) for one, other in itertools.pairwise(boxes)), name


def test_a_run_with_hardly_any_values_is_plotted_without_a_warning(tmp_path: Path) -> None:
    runs: list[list[dict[str, float | None]]] = [
        [{"step": 0, "val_loss": 10.8, "val_accuracy": 0.0}],
        [{"step": 1, "loss": None, "lr": 0.0}],
        [{"step": 1, "loss": 3.0}, {"step": 2, "loss": None}, {"step": 2, "val_loss": None}],
    ]
    for i, events in enumerate(runs):
        folder = tmp_path / str(i)
        folder.mkdir()
        (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
        with warnings.catch_warnings(), new_figure(*SIZE) as figure:
            warnings.simplefilter("error")
            panels = plot(figure, folder)
            assert render(figure, "png").startswith(b"\x89PNG")
        assert [text.get_text() for text in panels["grad_norm"].texts] == ["not recorded"]


def test_the_running_mean_follows_its_values() -> None:
    rising = np.arange(100.0)
    np.testing.assert_allclose(running_mean(rising)[:97], rising[:97])  # at the end, the window is cut off
    noise = np.random.default_rng(0).normal(size=1000)
    assert running_mean(noise)[50:].std() < 0.2
    assert running_mean(noise)[0] == noise[0]
    np.testing.assert_allclose(running_mean(noise)[500], noise[475:526].mean())
    np.testing.assert_allclose(running_mean(noise)[999], noise[974:].mean())
    assert running_mean(np.array([])).size == 0


def test_the_running_mean_ignores_nan() -> None:
    values = np.ones(100)
    values[50] = np.nan
    assert np.isfinite(running_mean(values)).all()
    np.testing.assert_equal(running_mean(np.full(3, np.nan)), np.full(3, np.nan))


def test_more_runs_than_colours_differ_in_their_dashes() -> None:
    assert len(set(line_styles(21))) == 21
    assert len(line_styles(30)) == 30
