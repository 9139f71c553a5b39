"""The report of a run: a self-contained HTML file, which needs no other file and no network."""

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from mlm_dist.files import LARGEST_SMALL_FILE, read_text, replacing
from mlm_dist.plots.chart import Chart, new_chart
from mlm_dist.plots.curves import LABELS, add_loss_legend, plot_losses, plot_metric, unit_of_time
from mlm_dist.plots.results import NO_RESULTS, Results
from mlm_dist.plots.sentences import Sentence
from mlm_dist.plots.style import printable, shortened
from mlm_dist.run.averaged import describe_average
from mlm_dist.run.history import Column, History
from mlm_dist.run.machine import read_machine
from mlm_dist.run.run_dir import RunDir

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROWS = 10
CHART = (4.8, 3.2)  # inches: about the width of a phone, so that the text stays readable on one
UNKNOWN = "–"
MAX_PATH_LENGTH = 30  # in characters


class Metric(NamedTuple):
    """A metric of the run: its name, its value, and a remark."""

    name: str
    value: str
    remark: str


def write_report(
    run: Path,
    history: History,
    sentences: Sequence[Sentence],
    note: str,
    file: Path,
    results: Results = NO_RESULTS,
) -> list[Path]:
    """Write the report.

    Args:
        run: the run directory.
        history: the metrics of the run.
        sentences: filled by the model of the run.
        note: why there are no sentences.
        file: to write.
        results: of `probe` and `finetune`.

    Returns:
        The path written.
    """
    run_dir = RunDir(run)
    environment = Environment(
        loader=PackageLoader("mlm_dist.plots", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html").render(
        name=printable(history.name),
        state=state_of(run_dir),
        metrics=metrics_of(history, run_dir.final_step()),
        charts=plot_charts(history),
        source_paths=[shortened(path, MAX_PATH_LENGTH) for path in history.source_losses],
        rows=losses_at_round_steps(history),
        sentences=sentences,
        note=note,
        results=results,
        percent=percent,
        config=sections_of(run_dir.config),
        machine=read_machine(run_dir.machine),
    )
    with replacing(file) as content:
        content.write(page.encode(errors="replace"))
    return [file]


def state_of(run_dir: RunDir) -> str:
    """Whether a run is finished, stopped (and by what), or neither; of the output of `average`, what it is."""
    if average := describe_average(run_dir.averaged):
        return f"whose parameters are the {average}; the metrics are those of that run"
    if run_dir.done.exists():
        step = run_dir.final_step()
        return "finished" if step is None else f"finished, with the parameters of step {step:,}"
    if run_dir.stopped.exists():
        try:
            return f"stopped by {read_text(run_dir.stopped, 'replace', LARGEST_SMALL_FILE).strip()}"
        except OSError:
            return "stopped"
    return "not finished"


def metrics_of(history: History, final_step: int | None = None) -> list[Metric]:
    """The metrics of the run so far; the evaluation is that of its final parameters, if they were evaluated.

    Args:
        history: of the run.
        final_step: the step of the parameters in model.pth; None if it is unknown.
    """
    training, evaluations = history.training, history.evaluations
    tokens, seconds = last(training["tokens"]), last(training["seconds"])
    steps, evaluated = last(np.append(evaluations["step"], training["step"])), last(evaluations["step"])
    if final_step is not None and final_step in evaluations["step"]:
        evaluated = final_step
    loss, accuracy = (value_at(evaluations, key, evaluated) for key in ("val_loss", "val_accuracy"))
    when = "no evaluation" if math.isnan(evaluated) else f"at step {evaluated:,.0f}"
    return [
        Metric("steps", format_number(steps, ",.0f"), "recorded so far"),
        Metric("tokens", format_amount(tokens), "of training text, all epochs"),
        Metric("validation loss", format_number(loss, ".3f"), f"nats per token, {when}"),
        Metric("accuracy", format_number(accuracy, ".1%"), f"of masked tokens predicted correctly, {when}"),
        Metric("perplexity", format_perplexity(loss), f"of masked tokens, {when}"),
        *(forgotten(history, path, evaluated) for path in history.source_losses),
        Metric("training time", format_duration(seconds), "without evaluations"),
        Metric("throughput", format_amount(tokens / seconds if seconds else math.nan), "tokens per second, on average"),
    ]


def forgotten(history: History, path: str, step: float) -> Metric:
    """By how much the loss on a corpus of the source is higher at a step than at the first evaluation."""
    losses, steps = history.source_losses[path], history.evaluations["step"]
    increase = last(losses[steps == step]) - losses[0]
    when = f"step {steps[0]:,.0f} to {step:,.0f}"
    return Metric(
        "forgotten",
        format_number(increase, "+.3f"),
        f"nats per token of {shortened(path, MAX_PATH_LENGTH)}, {when}",
    )


def losses_at_round_steps(history: History) -> list[list[str]]:
    """A table of step, tokens, training loss, validation loss, accuracy and perplexity at about evenly spaced steps.

    Columns with the losses on the corpora of the source follow, if they were measured.

    If the run was evaluated, only evaluated steps are listed.
    """
    training, evaluations = history.training, history.evaluations
    timeline = evaluations if evaluations["step"].size else training
    steps = timeline["step"]
    wanted = np.append(np.arange(0, steps[-1], round_interval(steps[-1] / ROWS)), steps[-1])
    rows = []
    for index in np.unique(np.abs(wanted[:, None] - steps).argmin(axis=1)):
        step = steps[index]
        loss = value_at(evaluations, "val_loss", step)
        row = [
            format_number(step, ",.0f"),
            format_amount(timeline["tokens"][index]),
            format_number(value_at(training, "loss", step), ".3f"),
            format_number(loss, ".3f"),
            format_number(value_at(evaluations, "val_accuracy", step), ".1%"),
            format_perplexity(loss),
            *(format_number(losses[index], ".3f") for losses in history.source_losses.values()),
        ]
        rows.append(row)
    return rows


def round_interval(minimum: float) -> float:
    """The smallest of 1, 2, 5, 10, 20, 50, ... that is at least `minimum`."""
    power = 10.0 ** math.floor(math.log10(max(minimum, 1)))
    return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= minimum)


def value_at(columns: dict[str, Column], key: str, step: float) -> float:
    """The value at a step, or NaN if there is none."""
    return last(columns[key][columns["step"] == step])


def plot_charts(history: History) -> list[Chart]:
    """Plot each curve as a chart of its own."""

    def plot_with_legend(axes: "Axes") -> None:
        plot_losses(axes, [history], "step")
        add_loss_legend(axes, [history])

    charts: dict[str, Callable[[Axes], None]] = {
        "Loss": plot_with_legend,
        "Loss over tokens": partial(plot_losses, histories=[history], against="tokens"),
        "Loss over time": partial(plot_losses, histories=[history], against="seconds"),
    }
    charts |= {label.capitalize(): partial(plot_metric, histories=[history], key=key) for key, label in LABELS.items()}
    return [new_chart(title, CHART, plot) for title, plot in charts.items()]


def sections_of(config: Path) -> list[str]:
    """The text of a config.yaml, split into its sections; empty if it cannot be read."""
    try:
        text = read_text(config, "replace", LARGEST_SMALL_FILE)
    except OSError:
        return []
    return re.split(r"^(?=\w+:$)", text, flags=re.MULTILINE)


def last(values: Column) -> float:
    """The last value, or NaN if there is none."""
    return float(values[-1]) if values.size else math.nan


def format_number(value: float, spec: str) -> str:
    """A formatted number, or a dash if it is not finite."""
    return format(value, spec) if math.isfinite(value) else UNKNOWN


def percent(fraction: float, sign: str = "") -> str:
    """A fraction in percent; `sign="+"`: with its sign."""
    return f"{100 * fraction:{sign}z.1f}"


def format_amount(value: float) -> str:
    """A number with few digits: 446, 4.6 k, 7.3 M."""
    from matplotlib.ticker import EngFormatter  # noqa: PLC0415

    return EngFormatter(places=1)(value) if value >= 1000 and math.isfinite(value) else format_number(value, ".0f")


def format_perplexity(loss: float) -> str:
    """The exponential of a loss, formatted."""
    with np.errstate(over="ignore"):
        value = float(np.exp(loss))
    return format_number(value, ",.0f" if value >= 100 else ".1f")


def format_duration(seconds: float) -> str:
    """A duration, formatted in a unit in which it has few digits."""
    unit, symbol = unit_of_time([seconds])
    return f"{seconds / unit:.3g} {symbol}" if math.isfinite(seconds) else UNKNOWN
