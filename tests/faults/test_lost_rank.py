"""If a rank stops responding, the others end the run within the timeout, and report its rank and its last step."""

import os
import re
import signal

import pytest

from tests.faults.conftest import (
    assert_same_run,
    children,
    has_reached,
    newest_step,
    run_to_end,
    running,
    train_command,
    wait_until,
)

pytestmark = pytest.mark.slow


@pytest.mark.multiprocess
@pytest.mark.parametrize("store", ["torchrun's", pytest.param("rank 0's", marks=pytest.mark.long)])
def test_an_unresponsive_rank_is_named(store, corpus_folder, two_rank_reference, tmp_path):
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
    run_to_end(command)
    assert_same_run(run_dir, two_rank_reference)
