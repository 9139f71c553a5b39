"""averaged.json: which parameters the model.pth of a run directory is the mean of, if `average` wrote it."""

import json
from collections.abc import Mapping
from pathlib import Path

from mlm_dist.files import read_json
from mlm_dist.run.checkpoint import STATE, fingerprint, step_of


def write_average(file: Path, run: Path, paths: Mapping[int, Path]) -> None:
    """Write averaged.json.

    Args:
        file: the file.
        run: the run directory that the parameters are from.
        paths: the averaged checkpoints and milestones by step.
    """
    files = {str(path.relative_to(run) / STATE): fingerprint(path / STATE)["sha256"] for path in paths.values()}
    content = {"run": str(run), "steps": [*map(step_of, paths.values())], "sha256": files}
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def describe_average(file: Path) -> str:
    """What the parameters are the mean of, in words; empty if they are not a mean or the file is damaged."""
    try:
        content = read_json(file)
        return f"mean of steps {', '.join(map(str, content['steps']))} of {Path(content['run']).name}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
