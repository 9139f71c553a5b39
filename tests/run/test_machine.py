import json
import platform
import socket
from pathlib import Path

import torch

from mlm_dist.data.preparation import usable_cores
from mlm_dist.run.machine import describe_machine, processor


def test_a_run_says_what_it_was_trained_on(run_dir: Path) -> None:
    machine = json.loads((run_dir / "machine.json").read_text(encoding="utf-8"))
    date = machine.pop("date")
    assert machine == {
        "device": processor(),
        "cores": usable_cores(),
        "threads": 1,  # the tests start their processes with one
        "processes": 1,
        "precision": "float32",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    assert len(date.split("-")) == 3


def test_neither_the_machines_name_nor_a_path_is_told() -> None:
    told = json.dumps(describe_machine(torch.device("cpu"), torch.float32))
    assert socket.gethostname() not in told.replace('"', " ").split()
    assert str(Path.home()) not in told
    assert str(Path.cwd()) not in told


def test_the_processor_has_a_name() -> None:
    assert processor()
