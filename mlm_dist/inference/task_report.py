"""The results on a labelled task, from the JSON of `finetune` and as text.

Both `finetune` and the report of a run need them, so they are below both.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from pydantic import ConfigDict, NonNegativeFloat, PositiveInt, TypeAdapter

TABLE = "finetune.json"
TRAINED = "trained"
UNTRAINED = "untrained"
MAJORITY = "majority"
TFIDF = "TF-IDF"
METHODS = {"frozen": "linear probes on pooled states", "full": "full fine-tuning"}
LONGEST_KEY = 80  # in a message
PARAMETERS = "the parameters (SHA-256)"  # in the settings


class Estimate(NamedTuple):
    """A metric, as a mean over seeds.

    Attributes:
        value: the mean.
        low: the lower end of its 95 % interval.
        high: the upper end.
        standard_error: of the mean.
    """

    value: float
    low: float
    high: float
    standard_error: NonNegativeFloat


Estimates = Mapping[str, Mapping[str, Estimate]]
"""By name of the contestant, and by metric."""


class Examples(NamedTuple):
    """The numbers of texts; `dev` is None if each seed takes a tenth of the training texts."""

    train: PositiveInt
    dev: PositiveInt | None
    test: PositiveInt


class TaskResult(NamedTuple):
    """The results of a comparison.

    Attributes:
        method: how the encoders learned.
        parameters: the SHA-256 of those of the trained encoder.
        classes: their names; empty if the labels are scores.
        examples: the numbers of texts.
        seeds: the number of seeds of each contestant.
        estimates: the metrics of each contestant.
        gains: how much those of the trained encoder exceed those of each other contestant.
    """

    method: Literal["frozen", "full"]
    parameters: str
    classes: list[str]
    examples: Examples
    seeds: dict[str, PositiveInt]
    estimates: dict[str, dict[str, Estimate]]
    gains: dict[str, dict[str, Estimate]]

    @property
    def metrics(self) -> list[str]:
        """The names of the metrics, the main one first."""
        return [*self.gains[UNTRAINED]]


def main_metric(classes: Sequence[str]) -> str:
    """The metric by which models are chosen; `classes` is empty if the labels are scores."""
    return "accuracy" if classes else "Spearman"


TASK_RESULT = TypeAdapter(TaskResult, config=ConfigDict(strict=True, allow_inf_nan=False))


def from_json(content: Any) -> TaskResult:
    """The results, from finetune.json.

    Raises:
        ValueError: it is something else.
    """
    try:
        settings, results, gains = (content[key] for key in ("settings", "results", "trained_minus"))
        main, others = main_metric(content["classes"]), [*gains]
        metrics = [main, *(metric for metric in gains[UNTRAINED] if metric != main)]
        picked = {
            "method": settings["method"],
            "parameters": settings[PARAMETERS],
            "classes": content["classes"],
            "examples": content["examples"],
            "seeds": {name: results[name]["seeds"] for name in [*others, TRAINED]},
            "estimates": {name: {metric: results[name][metric] for metric in metrics} for name in [*others, TRAINED]},
            "gains": {name: {metric: gains[name][metric] for metric in metrics} for name in others},
        }
    except KeyError as error:
        raise ValueError(f"there is no {str(error)[:LONGEST_KEY]}") from error
    except (TypeError, IndexError) as error:
        raise ValueError("its values have the wrong types") from error
    return TASK_RESULT.validate_python(picked)


def to_text(task: TaskResult) -> str:
    """The results as a table: a line for each contestant, and for what training gained."""
    rows = [(name, str(task.seeds[name]), "", found) for name, found in task.estimates.items()]
    rows += [(f"{TRAINED} - {name}", "", "+", found) for name, found in task.gains.items()]
    width = max(len(name) for name, *_ in rows)
    lines = [f"{'':<{width}}  seeds  {'  '.join(f'{metric:<22}' for metric in task.metrics)}".rstrip()]
    for name, seeds, sign, found in rows:
        cells = "  ".join(f"{cell(found[metric], sign):<22}" for metric in task.metrics)
        lines.append(f"{name:<{width}}  {seeds:>5}  {cells}".rstrip())
    notes = footnotes(task)
    return "\n".join([*lines, notes.units, notes.method, notes.gain])


def cell(found: Estimate, sign: str = "") -> str:
    """A metric and its 95 % interval, in percent."""
    value, low, high = (100 * number for number in (found.value, found.low, found.high))
    return f"{value:{sign or ' '}6.1f} [{low:5.1f}, {high:5.1f}]"


class Footnotes(NamedTuple):
    """What a table does not say.

    Attributes:
        units: of the values, and what the intervals are over.
        method: how the encoders learned, and on how many texts.
        gain: whether the trained encoder learns the task better than the untrained one.
    """

    units: str
    method: str
    gain: str


def footnotes(task: TaskResult) -> Footnotes:
    """The lines below the table."""
    train, dev, test = task.examples
    over = f"the {test:,} test texts" if set(task.seeds.values()) == {1} else f"the seeds and the {test:,} test texts"
    of_dev = f"{dev:,} dev texts" if dev else "each seed holds out another tenth of them as its dev set"
    metric = task.metrics[0]
    gain = task.gains[UNTRAINED][metric]
    value, error = 100 * gain.value, 100 * gain.standard_error
    verdict = "within two standard errors"
    if abs(value) > 2 * error:
        verdict = f"{'better' if value > 0 else 'WORSE'} by more than two standard errors"
    return Footnotes(
        f"in percent, with 95% intervals over {over}",
        f"{METHODS[task.method]} of the encoders, on {train:,} training texts; {of_dev}",
        f"trained against untrained, {metric}: {value:+.1f}, standard error {error:.1f}: {verdict}",
    )
