"""Asked to stop, a run saves, leaves with exit code 0, says how to go on, and goes on to the same bits."""

import os
import signal
from pathlib import Path

import pytest

from tests.faults.conftest import (
    Popen,
    assert_same_run,
    children,
    complete,
    end,
    has_reached,
    history,
    running,
    train_command,
    wait_until,
)

pytestmark = pytest.mark.slow


def assert_stopped(run_dir: Path, output: tuple[int, str, str], reason: str) -> None:
    code, stdout, stderr = output
    assert code == 0, stderr
    assert f"stopped by {reason} at step " in stdout
    assert "the same command continues from there" in stdout
    assert (run_dir / "STOPPED").read_text() == f"{reason}\n"
    assert not (run_dir / "DONE").exists()
    assert not (run_dir / "model.pth").exists()
    assert not list(run_dir.rglob("*.partial"))
    step = history(run_dir)[-1]["step"]
    assert (run_dir / f"checkpoints/step-{step:08d}").exists()


@pytest.mark.parametrize(
    ("number", "step"),
    [(signal.SIGUSR1, 33), (signal.SIGUSR2, 101), (signal.SIGTERM, 66), (signal.SIGINT, 150)],
    ids=["USR1", "USR2", "TERM", "INT"],
)
def test_a_signal_stops_a_run_between_two_steps(number, step, corpus_folder, unbroken, tmp_path):
    run_dir = tmp_path / "run"
    command = train_command(corpus_folder, run_dir)
    with running(command) as process:
        wait_until(process, has_reached(run_dir, step))
        process.send_signal(number)
        assert_stopped(run_dir, end(process), signal.Signals(number).name)
    complete(command)
    assert_same_run(run_dir, unbroken)


def test_a_signal_while_torch_is_imported_stops_a_run_before_its_first_step(corpus_folder, unbroken, tmp_path):
    run_dir = tmp_path / "run"
    command = train_command(corpus_folder, run_dir)
    with running(command) as process:
        torch_is_loading = Path(f"/proc/{process.pid}/maps")
        wait_until(process, lambda: "libtorch" in torch_is_loading.read_text())
        process.send_signal(signal.SIGTERM)
        code, stdout, stderr = end(process)
    assert code == 0, stderr
    assert "stopped by SIGTERM at step 0 of 240" in stdout
    complete(command)
    assert_same_run(run_dir, unbroken)


def wait_for_work(process: Popen, seconds: float) -> None:
    """Wait until a process has computed for so long, however long it has to wait for a core."""
    ticks = os.sysconf("SC_CLK_TCK")

    def worked() -> float:
        return int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11]) / ticks

    enough = worked() + seconds
    wait_until(process, lambda: worked() >= enough)


def test_a_second_interrupt_does_not_wait_for_the_end_of_a_step(corpus_folder, tmp_path):
    run_dir = tmp_path / "run"
    long_steps = {"train__batch_size": 2560, "train__micro_batch_size": 1, "train__eval_interval": 0}
    with running(train_command(corpus_folder, run_dir, **long_steps)) as process:
        wait_until(process, has_reached(run_dir, 1))
        wait_for_work(process, 0.3)  # so that the next step has begun: between two steps the run would stop at once
        process.send_signal(signal.SIGINT)
        wait_for_work(process, 0.1)
        process.send_signal(signal.SIGINT)
        code, stdout, stderr = end(process)
    assert (code, stderr) == (130, "mlm_dist: interrupted\n")
    assert "stopped" not in stdout


def test_a_stop_file_stops_a_run_and_is_gone_when_it_goes_on(corpus_folder, unbroken, tmp_path):
    run_dir = tmp_path / "run"
    command = train_command(corpus_folder, run_dir)
    with running(command) as process:
        wait_until(process, has_reached(run_dir, 77))
        (run_dir / "STOP").touch()
        assert_stopped(run_dir, end(process), str(run_dir / "STOP"))
    assert not (run_dir / "STOP").exists()
    complete(command)
    assert_same_run(run_dir, unbroken)


def test_a_generators_run_goes_on_with_the_rates_that_it_would_have_drawn(corpus_folder, tmp_path):
    settings = {"train__max_iters": 90, "masking__mask_prob_range": "[0, 1]"}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    complete(train_command(corpus_folder, whole, **settings))
    command = train_command(corpus_folder, stopped, **settings)
    with running(command) as process:
        wait_until(process, has_reached(stopped, 44))
        process.send_signal(signal.SIGTERM)
        assert_stopped(stopped, end(process), "SIGTERM")
    complete(command)
    assert_same_run(stopped, whole)


def test_the_clock_stops_a_run(corpus_folder, unbroken, tmp_path):
    run_dir = tmp_path / "run"
    seconds = 0.0
    while not (run_dir / "DONE").exists():
        seconds += 1.5
        output = complete(train_command(corpus_folder, run_dir, train__time_limit=seconds / 60))
        assert "stopped by train.time_limit" in output or "done: " in output
    assert seconds > 1.5
    assert_same_run(run_dir, unbroken)


def test_an_evaluation_is_broken_off_and_made_up_for(corpus_folder, tmp_path):
    settings = {"train__max_iters": 9, "train__eval_interval": 5, "train__eval_rows": 10**9}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    complete(train_command(corpus_folder, whole, **settings))
    command = train_command(corpus_folder, broken, **settings)
    with running(command) as process:
        wait_until(process, has_reached(broken, 5))  # its evaluation comes next, of many batches
        process.send_signal(signal.SIGUSR1)
        assert_stopped(broken, end(process), "SIGUSR1")
    assert [event["step"] for event in history(broken) if "val_loss" in event] == [0]
    complete(command)
    assert_same_run(broken, whole)


@pytest.mark.multiprocess
@pytest.mark.parametrize("rank", [0, 1])
def test_it_is_enough_that_one_rank_hears(rank, corpus_folder, unbroken_pair, tmp_path):
    run_dir = tmp_path / "run"
    command = train_command(corpus_folder, run_dir, processes=2)
    with running(command) as process:
        wait_until(process, has_reached(run_dir, 50))
        os.kill(children(process.pid)[rank], signal.SIGUSR1)
        assert_stopped(run_dir, end(process), "SIGUSR1")
    complete(command)
    assert_same_run(run_dir, unbroken_pair)


@pytest.mark.multiprocess
def test_torchrun_passes_term_on_and_the_run_can_be_continued(corpus_folder, unbroken_pair, tmp_path):
    run_dir = tmp_path / "run"
    command = train_command(corpus_folder, run_dir, processes=2)
    with running(command) as process:
        wait_until(process, has_reached(run_dir, 50))
        process.send_signal(signal.SIGTERM)
        code, stdout, _ = end(process)
    assert code == 1  # torchrun's own, whatever its processes exit with
    assert "stopped by SIGTERM" in stdout
    complete(command)
    assert_same_run(run_dir, unbroken_pair)
