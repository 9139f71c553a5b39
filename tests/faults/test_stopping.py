"""On a stop request, a run saves a checkpoint and exits with 0. It resumes with the same command, to the same bits."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import (
    Popen,
    assert_same_run,
    children,
    has_reached,
    history,
    run_to_end,
    running,
    train_command,
    wait_for_exit,
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
    ("signum", "step"),
    [
        (signal.SIGUSR1, 33),
        pytest.param(signal.SIGUSR2, 101, marks=pytest.mark.long),
        (signal.SIGTERM, 66),
        pytest.param(signal.SIGINT, 150, marks=pytest.mark.long),
    ],
    ids=["USR1", "USR2", "TERM", "INT"],
)
def test_a_signal_stops_a_run_between_two_steps(signum, step, corpus_folder, reference_run, tmp_path):
    run_dir = tmp_path / "run"
    command = train_command(corpus_folder, run_dir)
    with running(command) as process:
        wait_until(process, has_reached(run_dir, step))
        process.send_signal(signum)
        assert_stopped(run_dir, wait_for_exit(process), signal.Signals(signum).name)
    run_to_end(command)
    assert_same_run(run_dir, reference_run)


def test_a_signal_while_torch_is_imported_stops_a_run_before_its_first_step(corpus_folder, reference_run, tmp_path):
    run_dir = tmp_path / "run"
    command = train_command(corpus_folder, run_dir)
    with running(command) as process:
        maps = Path(f"/proc/{process.pid}/maps")
        wait_until(process, lambda: "libtorch" in maps.read_text())
        process.send_signal(signal.SIGTERM)
        code, stdout, stderr = wait_for_exit(process)
    assert code == 0, stderr
    assert "stopped by SIGTERM at step 0 of 240" in stdout
    run_to_end(command)
    assert_same_run(run_dir, reference_run)


def wait_for_cpu_time(process: Popen, seconds: float) -> None:
    """Wait until a process has used this much more CPU time."""
    ticks = os.sysconf("SC_CLK_TCK")

    def cpu_time() -> float:
        return int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11]) / ticks

    enough = cpu_time() + seconds
    wait_until(process, lambda: cpu_time() >= enough)


def test_a_second_interrupt_does_not_wait_for_the_end_of_a_step(corpus_folder, tmp_path):
    run_dir = tmp_path / "run"
    long_steps: dict[str, Any] = {"train__batch_size": 2560, "train__micro_batch_size": 1, "train__eval_interval": 0}
    with running(train_command(corpus_folder, run_dir, **long_steps)) as process:
        wait_until(process, has_reached(run_dir, 1))
        wait_for_cpu_time(process, 0.3)  # into the next step: between two steps, the run would stop at the first signal
        process.send_signal(signal.SIGINT)
        wait_for_cpu_time(process, 0.1)
        process.send_signal(signal.SIGINT)
        code, stdout, stderr = wait_for_exit(process)
    assert (code, stderr) == (130, "mlm_dist: interrupted\n")
    assert "stopped" not in stdout


def test_a_stop_file_stops_a_run_and_is_removed(corpus_folder, reference_run, tmp_path):
    run_dir = tmp_path / "run"
    command = train_command(corpus_folder, run_dir)
    with running(command) as process:
        wait_until(process, has_reached(run_dir, 77))
        (run_dir / "STOP").touch()
        assert_stopped(run_dir, wait_for_exit(process), str(run_dir / "STOP"))
    assert not (run_dir / "STOP").exists()
    run_to_end(command)
    assert_same_run(run_dir, reference_run)


def test_sampled_mask_rates_are_the_same_after_a_run_resumes(corpus_folder, tmp_path):
    settings: dict[str, Any] = {"train__max_iters": 90, "masking__mask_prob_range": "[0, 1]"}
    undisturbed, stopped = tmp_path / "undisturbed", tmp_path / "stopped"
    run_to_end(train_command(corpus_folder, undisturbed, **settings))
    command = train_command(corpus_folder, stopped, **settings)
    with running(command) as process:
        wait_until(process, has_reached(stopped, 44))
        process.send_signal(signal.SIGTERM)
        assert_stopped(stopped, wait_for_exit(process), "SIGTERM")
    run_to_end(command)
    assert_same_run(stopped, undisturbed)


def test_the_time_limit_stops_a_run(corpus_folder, reference_run, tmp_path):
    run_dir = tmp_path / "run"
    seconds = 0.0
    while not (run_dir / "DONE").exists():
        seconds += 1.5
        output = run_to_end(train_command(corpus_folder, run_dir, train__time_limit=seconds / 60))
        assert "stopped by train.time_limit" in output or "done: " in output
    assert seconds > 1.5
    assert_same_run(run_dir, reference_run)


def test_an_evaluation_is_interrupted_and_repeated_when_the_run_resumes(corpus_folder, tmp_path):
    settings: dict[str, Any] = {"train__max_iters": 9, "train__eval_interval": 5, "train__eval_rows": 10**9}
    undisturbed, interrupted = tmp_path / "undisturbed", tmp_path / "interrupted"
    run_to_end(train_command(corpus_folder, undisturbed, **settings))
    command = train_command(corpus_folder, interrupted, **settings)
    with running(command) as process:
        wait_until(process, has_reached(interrupted, 5))  # the evaluation of this step follows, and has many batches
        process.send_signal(signal.SIGUSR1)
        assert_stopped(interrupted, wait_for_exit(process), "SIGUSR1")
    assert [event["step"] for event in history(interrupted) if "val_loss" in event] == [0]
    run_to_end(command)
    assert_same_run(interrupted, undisturbed)


@pytest.mark.multiprocess
@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.long), 1])
def test_a_signal_to_one_rank_stops_all_ranks(rank, corpus_folder, two_rank_reference, tmp_path):
    run_dir = tmp_path / "run"
    command = train_command(corpus_folder, run_dir, processes=2)
    with running(command) as process:
        wait_until(process, has_reached(run_dir, 50))
        os.kill(children(process.pid)[rank], signal.SIGUSR1)
        assert_stopped(run_dir, wait_for_exit(process), "SIGUSR1")
    run_to_end(command)
    assert_same_run(run_dir, two_rank_reference)


@pytest.mark.multiprocess
def test_a_sigterm_to_torchrun_stops_the_run_which_then_resumes(corpus_folder, two_rank_reference, tmp_path):
    run_dir = tmp_path / "run"
    command = train_command(corpus_folder, run_dir, processes=2)
    with running(command) as process:
        wait_until(process, has_reached(run_dir, 50))
        process.send_signal(signal.SIGTERM)
        code, stdout, _ = wait_for_exit(process)
    assert code == 1  # torchrun's own, whatever its processes exit with
    assert "stopped by SIGTERM" in stdout
    run_to_end(command)
    assert_same_run(run_dir, two_rank_reference)
