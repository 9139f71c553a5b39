"""Two runs in one run directory: the second is refused while the first lives, and takes over when it has died."""

import os
import signal
import socket

import pytest

from tests.conftest import start
from tests.faults.conftest import assert_same_run, end, has_reached, held, history, running, train_command, wait_until

pytestmark = pytest.mark.slow


def test_a_second_run_is_refused_and_harms_nothing(corpus_folder, unbroken, tmp_path):
    run_dir = tmp_path / "run"
    command = train_command(corpus_folder, run_dir)
    with running(command) as process:
        wait_until(process, has_reached(run_dir, 10))
        with held(process):
            before = history(run_dir)
            second = start(command)
            assert history(run_dir) == before
        assert end(process)[0] == 0
    assert second.returncode == 2
    (line,) = second.stderr.splitlines()
    assert f"{run_dir} is in use by process {process.pid} on {socket.gethostname()}" in line
    assert_same_run(run_dir, unbroken)


def test_the_lock_of_a_dead_process_is_taken_over(corpus_folder, unbroken, tmp_path):
    run_dir = tmp_path / "run"
    command = train_command(corpus_folder, run_dir)
    with running(command) as process:
        wait_until(process, has_reached(run_dir, 10))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert str(process.pid) in (run_dir / ".lock").read_text()
    result = start(command)
    assert result.returncode == 0, result.stderr
    assert_same_run(run_dir, unbroken)
