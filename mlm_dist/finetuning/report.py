"""The results of a comparison as text and as JSON."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mlm_dist.finetuning.comparison import UNTRAINED
from mlm_dist.finetuning.examples import LabelledTask
from mlm_dist.finetuning.metrics import Estimate, Samples, estimate, main_metric, measure
from mlm_dist.finetuning.outcome import Outcome
from mlm_dist.finetuning.result_folder import TRAINED

METHODS = {"frozen": "linear probes on pooled states", "full": "full fine-tuning"}
Estimates = Mapping[str, Mapping[str, Estimate]]
"""By name of the contestant, or of two of them, and by metric."""


def estimates(task: LabelledTask, results: Mapping[str, Sequence[Outcome]]) -> tuple[Estimates, Estimates]:
    """The metrics of each contestant, and how much those of the trained encoder exceed those of the others."""
    measured: dict[str, Mapping[str, Samples]] = {
        name: measure(task.test.targets, [outcome.test for outcome in outcomes], len(task.classes))
        for name, outcomes in results.items()
    }
    trained = measured[TRAINED]
    return (
        {name: {metric: estimate(samples) for metric, samples in of.items()} for name, of in measured.items()},
        {
            name: {metric: estimate(trained[metric] - samples) for metric, samples in of.items()}
            for name, of in measured.items()
            if name != TRAINED
        },
    )


def to_json(
    task: LabelledTask, results: Mapping[str, Sequence[Outcome]], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The results as plain values."""
    of, gains = estimates(task, results)
    best = int(np.argmax([outcome.dev for outcome in results[TRAINED]]))
    return {
        "settings": dict(settings),
        "classes": [*task.classes],
        "examples": {"train": len(task.train), "dev": len(task.dev) if task.dev else None, "test": len(task.test)},
        "results": {
            name: {
                "seeds": len(results[name]),
                "dev": [outcome.dev for outcome in results[name]],
                "chosen": [dict(outcome.chosen) for outcome in results[name]],
                **{metric: found._asdict() for metric, found in metrics.items()},
            }
            for name, metrics in of.items()
        },
        "trained_minus": {
            name: {metric: found._asdict() for metric, found in metrics.items()} for name, metrics in gains.items()
        },
        "model_seed": best,
    }


def to_text(content: Mapping[str, Any]) -> str:
    """The results, as `to_json` returns them, as a table: a line for each contestant, and for what training gained."""
    results, gains = content["results"], content["trained_minus"]
    metrics = [name for name, value in results[TRAINED].items() if isinstance(value, dict)]
    names = [*results, *(f"{TRAINED} - {name}" for name in gains)]
    width = max(map(len, names))
    lines = [f"{'':<{width}}  seeds  {'  '.join(f'{metric:<22}' for metric in metrics)}".rstrip()]
    for name, found in results.items():
        cells = "  ".join(f"{cell(found[metric]):<22}" for metric in metrics)
        lines.append(f"{name:<{width}}  {found['seeds']:>5}  {cells}".rstrip())
    for name, found in gains.items():
        cells = "  ".join(f"{cell(found[metric], sign='+'):<22}" for metric in metrics)
        lines.append(f"{f'{TRAINED} - {name}':<{width}}  {'':>5}  {cells}".rstrip())
    return "\n".join([*lines, *footnotes(content)])


def cell(found: Mapping[str, float], sign: str = "") -> str:
    """A metric and its 95 % interval, in percent."""
    value, low, high = (100 * found[key] for key in ("value", "low", "high"))
    return f"{value:{sign or ' '}6.1f} [{low:5.1f}, {high:5.1f}]"


def footnotes(content: Mapping[str, Any]) -> list[str]:
    """How the encoders learned, on how many examples, and whether the training has helped."""
    counts, method = content["examples"], content["settings"]["method"]
    metric = main_metric(len(content["classes"]))
    gain = content["trained_minus"][UNTRAINED][metric]
    value, error = (100 * gain[key] for key in ("value", "standard_error"))
    dev = f"{counts['dev']:,} dev texts" if counts["dev"] else "a tenth of them as dev set, another with each seed"
    return [
        f"in percent, with 95% intervals over the seeds and the {counts['test']:,} test texts",
        f"{METHODS[method]} of the encoders, on {counts['train']:,} training texts; {dev}",
        f"trained - untrained, {metric}: {value:+.1f}, standard error {error:.1f}: "
        f"{'more' if value > 2 * error else 'NOT more'} than two standard errors",
    ]
