"""Results of `probe` and `finetune`, with values of a test's choice."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from mlm_dist.finetuning.examples import Examples, LabelledTask
from mlm_dist.finetuning.outcome import Outcome
from mlm_dist.finetuning.report import to_json
from mlm_dist.finetuning.result_folder import write_json
from mlm_dist.inference.probing import Accuracy, Group, Probe
from mlm_dist.inference.task_report import PARAMETERS, TRAINED, UNTRAINED

TRUTH = np.array([0, 1, 0, 1])


def probe_at(step: int | None, value: float, *names: str, within_word: bool = False, long_sentences: int = 0) -> Probe:
    """The results at a step, with this accuracy on each phenomenon by sums, and half of it by means."""
    group = Group(1000, Accuracy(value, value - 0.1, value + 0.1), Accuracy(value / 2, 0.0, value))
    return Probe(step, group, dict.fromkeys(names, group), {"file": group}, long_sentences, within_word)


def write_task(folder: Path, *others: str, sha256: str = "digest", is_score: bool = False) -> Path:
    """Write a finetune.json: the trained encoder is right on 3 of 4 texts, all others on 2."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "finetune.json", task_content(others, sha256, is_score))
    return folder


@cache
def task_content(others: tuple[str, ...], sha256: str, is_score: bool) -> dict[str, Any]:
    """The content of `write_task`."""
    examples = Examples([("a",)] * 4, TRUTH / 1.0 if is_score else TRUTH)
    task = LabelledTask(() if is_score else ("land", "sea"), examples, None, examples)
    guesses = dict.fromkeys((*others, UNTRAINED), np.array([0, 0, 1, 1])) | {TRAINED: np.array([0, 1, 0, 0])}
    results = {name: [Outcome(guess, 0.5, {})] * 2 for name, guess in guesses.items()}
    return to_json(task, results, {"method": "frozen", PARAMETERS: sha256})
