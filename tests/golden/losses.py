"""Losses of 20 steps, recorded before a refactoring and compared after it.

`python -m tests.golden.losses` records new ones. Do that only in a commit that is meant to change what a run computes.
"""

import hashlib
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from tests.conftest import flags, verb

FOLDER = Path(__file__).parent
STEPS = 20
OVERRIDES = {
    "device": "cpu",
    "precision": "fp32",
    "train.max_iters": STEPS,
    "train.log_interval": 1,
}
RUNS: dict[str, dict[str, Any]] = {
    "debug": {"config": "configs/debug.yaml", "train.eval_interval": 10},
    "novels": {
        "config": "configs/novels.yaml",
        "data.path": "sample",
        "train.batch_size": 16,
        "train.eval_interval": 10,
        "train.eval_rows": 16,
    },
}


def measure(name: str, run_dir: Path) -> dict[str, list[Any]]:
    """Train a run of `RUNS` with one thread. Returns its figures by name, one per step or evaluation."""
    result = verb("train", *flags(**RUNS[name], **OVERRIDES, run_dir=run_dir))
    if result.returncode:
        raise RuntimeError(result.stderr)
    events = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    keys = ("loss", "grad_norm", "digest", "val_loss", "val_accuracy")
    return {key: [event[key] for event in events if key in event] for key in keys}


def fingerprint() -> str:
    """A digest of what determines floating-point rounding on this machine: the processor and the version of torch."""
    try:
        first_core = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        first_core = ""
    kept = re.findall(r"^(?:vendor_id|cpu family|model|model name|stepping|cache size|flags)\s*:.*$", first_core, re.M)
    return hashlib.sha256("\n".join([*kept, torch.__version__]).encode()).hexdigest()[:16]


def main() -> None:
    """Record the figures of every run."""
    for name in RUNS:
        with tempfile.TemporaryDirectory() as folder:
            recorded = {"fingerprint": fingerprint(), **measure(name, Path(folder) / "run")}
        (FOLDER / f"{name}.json").write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")
        print(name, recorded["loss"][0], recorded["loss"][-1], file=sys.stderr)


if __name__ == "__main__":
    main()
