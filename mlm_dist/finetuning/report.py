"""The results of a comparison as JSON."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mlm_dist.finetuning.examples import LabelledTask
from mlm_dist.finetuning.metrics import Samples, estimate, measure
from mlm_dist.finetuning.outcome import Outcome
from mlm_dist.inference.task_report import TRAINED, Estimates


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
