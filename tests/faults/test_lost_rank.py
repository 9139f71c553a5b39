"""A rank that stops answering: the others say which, and since which step, and end the run within the timeout."""

import os
import re
import signal

import pytest

from tests.faults.conftest import (
    assert_same_run,
    children,
    complete,
    has_reached,
    newest_step,
    running,
    train_command,
    wait_until,
)

pytestmark = pytest.mark.slow


@pytest.mark.multiprocess
@pytest.mark.parametrize("store", ["torchrun's", "rank 0's"])
def test_a_rank_that_does_not_answer_is_named(store, corpus_folder, unbroken_pair, tmp_path):
    run_dir = tmp_path / "run"
    command = train_command(corpus_folder, run_dir, processes=2)
    environment = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": str(int(store == "rank 0's"))}
    for lost in (0, 1):
        with running([*command, "--train.hang_timeout=0.05"], **environment) as process:
            wait_until(process, has_reached(run_dir, newest_step(run_dir) + 30))
            os.kill(children(process.pid)[lost], signal.SIGSTOP)
            assert process.stderr
            line = next(line for line in process.stderr if line.startswith("mlm_dist: error:"))
        if (store, lost) == ("rank 0's", 0):
            assert "the process that hosts the rendezvous, rank 0 or its torchrun, does not respond" in line
        else:
            step = re.search(rf"rank {lost} does not respond; it was last seen at step (\d+)", line)
            assert step, line
            assert 0 <= int(step[1]) <= 240
        assert "the same command continues from the last checkpoint" in line
    complete(command)
    assert_same_run(run_dir, unbroken_pair)
