"""A second run in a run directory is refused while the first one is alive, and takes over after it has died."""

import os
import signal
import socket

import pytest

from tests.conftest import start
from tests.faults.conftest import (
    assert_same_run,
    has_reached,
    history,
    paused,
    run_to_end,
    running,
    train_command,
    wait_for_exit,
    wait_until,
)

pytestmark = pytest.mark.slow


def test_a_second_run_is_refused_and_changes_nothing(corpus_folder, reference_run, tmp_path):
    run_dir = tmp_path / "run"
    command = train_command(corpus_folder, run_dir)
    with running(command) as process:
        wait_until(process, has_reached(run_dir, 10))
        with paused(process):
            before = history(run_dir)
            second = start(command)
            assert history(run_dir) == before
        assert wait_for_exit(process)[0] == 0
    assert second.returncode == 2
    (line,) = second.stderr.splitlines()
    assert f"{run_dir} is in use by process {process.pid} on {socket.gethostname()}" in line
    assert_same_run(run_dir, reference_run)


def test_the_lock_of_a_dead_process_is_taken_over(corpus_folder, reference_run, tmp_path):
    run_dir = tmp_path / "run"
    command = train_command(corpus_folder, run_dir)
    with running(command) as process:
        wait_until(process, has_reached(run_dir, 10))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert str(process.pid) in (run_dir / ".lock").read_text()
    run_to_end(command)
    assert_same_run(run_dir, reference_run)
