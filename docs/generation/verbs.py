"""Generating and evaluating with trained runs through the commands of the package, as a user would."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from mlm_dist.errors import UserError
from passages import Passage


def generate(run: Path, how: list[str], count: int, length: int, seed: int) -> list[Passage]:
    """Generate texts from nothing with the model of a run.

    Args:
        run: the run directory.
        how: flags of `generate`.
        count: number of texts.
        length: of each text, in tokens.
        seed: of the texts.
    """
    sizes = ["--samples", str(count), "--length", str(length), "--seed", str(seed)]
    answers = ask("generate", "--run", str(run), *sizes, *how, "--json")
    return [Passage(answer["text"], answer["tokens"]) for answer in answers]


def nll_bound(run: Path, corpus: Path) -> float:
    """An upper bound on a run's negative log-likelihood of the validation text, in nats per token, by `evaluate`."""
    (answer,) = ask("evaluate", "--run", str(run), "--data", str(corpus), "--mask_prob", "[0, 1]", "--json")
    return float(answer["loss"])


def ask(verb: str, *arguments: str) -> list[dict[str, Any]]:
    """Run `python -m mlm_dist.<verb>` and parse its output, one JSON object per line.

    Raises:
        UserError: its exit status is not 0.
    """
    command = [sys.executable, "-m", f"mlm_dist.{verb}", *arguments]
    result = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    if result.returncode:
        raise UserError(f"{verb} {' '.join(arguments)}: {result.stderr}")
    return [json.loads(line) for line in result.stdout.split("\n") if line]  # strings may contain U+2028
