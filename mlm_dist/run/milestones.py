"""Milestones: the parameters of chosen steps, which are never deleted.

milestones/step-00000500/   as a checkpoint (run/checkpoint.py), but its state is what `TrainState.milestone` returns
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlm_dist.run.checkpoint import find_damage, read_record, step_name, write_step


def save_milestone(folder: Path, step: int, state: dict[str, Any], record: Mapping[str, Any] | None) -> None:
    """Write a milestone, unless an undamaged one with the same record is there, as after a resume.

    A different record means other parameters: the run was resumed before this step with other values.

    Args:
        folder: the run's folder of milestones, which may not exist yet.
        step: steps taken so far.
        state: its parameters, and plain values.
        record: the run's record, as plain JSON values.

    Raises:
        OSError: it cannot be written.
    """
    path = folder / step_name(step)
    if find_damage(path) is None and read_record(path) == json.loads(json.dumps(record)):
        return
    folder.mkdir(exist_ok=True)
    write_step(folder, step, state, record)
