"""Generate and evaluate with trained runs, through the commands of the package."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from mlm_dist.errors import UserError
from passages import Passage


def generate(run: Path, flags: list[str], count: int, length: int, seed: int) -> list[Passage]:
    """Generate texts without a prompt, with the model of a run.

    Args:
        run: the run directory.
        flags: flags of `generate`.
        count: number of texts.
        length: of each text, in tokens.
        seed: of the texts.
    """
    sizes = ["--samples", str(count), "--length", str(length), "--seed", str(seed)]
    answers = run_command("generate", "--run", str(run), *sizes, *flags, "--json")
    return [Passage(answer["text"], answer["tokens"]) for answer in answers]


def nll_bound(run: Path, corpus: Path) -> float:
    """An upper bound on a run's negative log-likelihood of the validation text, in nats per token, by `evaluate`."""
    (answer,) = run_command(
        "evaluate", "--run", str(run), "--data", str(corpus), "--mask_prob_range", "0", "1", "--json"
    )
    return float(answer["loss"])


def run_command(name: str, *arguments: str) -> list[dict[str, Any]]:
    """Run `python -m mlm_dist.<name>` and parse its output, one JSON object per line.

    Raises:
        UserError: its exit status is not 0.
    """
    command = [sys.executable, "-m", f"mlm_dist.{name}", *arguments]
    result = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    if result.returncode:
        raise UserError(f"{name} {' '.join(arguments)}: {result.stderr}")
    return [json.loads(line) for line in result.stdout.split("\n") if line]  # strings may contain U+2028
