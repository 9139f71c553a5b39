import json
import platform
import socket
from pathlib import Path

import torch

from mlm_dist.data.encoding import usable_cores
from mlm_dist.run.machine import describe_machine, processor


def test_a_run_records_its_machine(run_dir: Path) -> None:
    machine = json.loads((run_dir / "machine.json").read_text(encoding="utf-8"))
    date = machine.pop("date")
    assert machine == {
        "device": processor(),
        "cores": usable_cores(),
        "threads": 1,  # see tests/conftest.py
        "processes": 1,
        "precision": "float32",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    assert len(date.split("-")) == 3


def test_neither_host_name_nor_paths_are_recorded() -> None:
    description = json.dumps(describe_machine(torch.device("cpu"), torch.float32))
    assert socket.gethostname() not in description.replace('"', " ").split()
    assert str(Path.home()) not in description
    assert str(Path.cwd()) not in description


def test_the_processor_has_a_name() -> None:
    assert processor()
