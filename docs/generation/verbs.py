"""What is asked of trained runs, by the verbs of the package: as a reader would ask it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from mlm_dist.errors import UserError
from passages import Passage


def generate(run: Path, how: list[str], count: int, length: int, seed: int) -> list[Passage]:
    """Have a run write texts from nothing.

    Args:
        run: its folder.
        how: flags of `generate`.
        count: of texts.
        length: of each, in tokens.
        seed: of the texts.
    """
    sizes = ["--samples", str(count), "--length", str(length), "--seed", str(seed)]
    answers = ask("generate", "--run", str(run), *sizes, *how, "--json")
    return [Passage(answer["text"], answer["tokens"]) for answer in answers]


def nll_bound(run: Path, corpus: Path) -> float:
    """The bound on a run's negative log-likelihood of the held-out text, in nats per token: as `evaluate` gives it."""
    (answer,) = ask("evaluate", "--run", str(run), "--data", str(corpus), "--mask_prob", "[0, 1]", "--json")
    return float(answer["loss"])


def ask(verb: str, *arguments: str) -> list[dict[str, Any]]:
    """Run `python -m mlm_dist.<verb>` and read the JSON objects that it prints, one a line.

    Raises:
        UserError: it complains.
    """
    command = [sys.executable, "-m", f"mlm_dist.{verb}", *arguments]
    result = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    if result.returncode:
        raise UserError(f"{verb} {' '.join(arguments)}: {result.stderr}")
    return [json.loads(line) for line in result.stdout.split("\n") if line]  # strings may hold U+2028
