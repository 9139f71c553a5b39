"""The results on a labelled task, from the JSON of `finetune` and as text."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from annotated_types import MinLen
from pydantic import ConfigDict, PositiveInt, TypeAdapter

TRAINED = "trained"
UNTRAINED = "untrained"
METHODS = {"frozen": "linear probes on pooled states", "full": "full fine-tuning"}
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
    standard_error: float


Estimates = Mapping[str, Mapping[str, Estimate]]
"""By name of the contestant, and by metric. The first metric is the main one, by which models are chosen."""


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
    gains: dict[str, Annotated[dict[str, Estimate], MinLen(1)]]

    @property
    def metrics(self) -> list[str]:
        """The names of the metrics, the main one first."""
        return [*self.gains[UNTRAINED]]


TASK_RESULT = TypeAdapter(TaskResult, config=ConfigDict(strict=True, allow_inf_nan=False))


def from_json(content: Any) -> TaskResult:
    """The results, from finetune.json.

    Raises:
        ValueError: it is something else.
    """
    try:
        settings, results, gains = (content[key] for key in ("settings", "results", "trained_minus"))
        others = [name for name in results if name != TRAINED]
        metrics = [*gains[UNTRAINED]]
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
        raise ValueError(f"there is no {error}") from error
    except (TypeError, IndexError) as error:
        raise ValueError("its parts are of another kind") from error
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
    return "\n".join([*lines, *footnotes(task)])


def cell(found: Estimate, sign: str = "") -> str:
    """A metric and its 95 % interval, in percent."""
    value, low, high = (100 * number for number in (found.value, found.low, found.high))
    return f"{value:{sign or ' '}6.1f} [{low:5.1f}, {high:5.1f}]"


def footnotes(task: TaskResult) -> list[str]:
    """How the encoders learned, on how many examples, and whether the training has helped."""
    train, dev, test = task.examples
    metric = task.metrics[0]
    gain = task.gains[UNTRAINED][metric]
    value, error = 100 * gain.value, 100 * gain.standard_error
    of_dev = f"{dev:,} dev texts" if dev else "a tenth of them as dev set, another with each seed"
    return [
        f"in percent, with 95% intervals over the seeds and the {test:,} test texts",
        f"{METHODS[task.method]} of the encoders, on {train:,} training texts; {of_dev}",
        f"{TRAINED} - {UNTRAINED}, {metric}: {value:+.1f}, standard error {error:.1f}: "
        f"{'more' if value > 2 * error else 'NOT more'} than two standard errors",
    ]
