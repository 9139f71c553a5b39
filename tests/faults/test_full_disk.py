"""On a full disk, training continues with warnings and keeps older checkpoints. Missing results are an error."""

import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mlm_dist.run.checkpoint import find_damage, list_checkpoints, step_of
from tests.conftest import start
from tests.faults.conftest import (
    assert_same_run,
    has_reached,
    paused,
    run_to_end,
    running,
    train_command,
    wait_for_exit,
    wait_until,
)

pytestmark = pytest.mark.slow


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a small file system at `folder`."""
    folder.mkdir()
    mounted = start(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)])
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        assert start(["umount", str(folder)]).returncode == 0


def fill_up(disk: Path) -> Path:
    """Fill the disk with one file, and return its path."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return filler


def intact_steps(run_dir: Path) -> list[int]:
    """The steps of the intact checkpoints."""
    return [step_of(path) for path in list_checkpoints(run_dir / "checkpoints") if not find_damage(path)]


def test_training_continues_if_checkpoints_cannot_be_written_and_ends_in_an_error(
    corpus_folder, reference_run, tmp_path
):
    run_dir = tmp_path / "run"
    command = train_command(corpus_folder, run_dir)
    with running(command) as process:
        wait_until(process, has_reached(run_dir, 65))
        process.send_signal(signal.SIGUSR1)
        assert wait_for_exit(process)[0] == 0
    before = intact_steps(run_dir)
    state = next(run_dir.glob("checkpoints/*/state.pt")).stat().st_size
    result = start(["prlimit", f"--fsize={state - 1}", *command])
    assert result.returncode == 1
    *warnings, last = result.stderr.splitlines()
    assert warnings
    for line in warnings:
        assert "a checkpoint could not be written (File too large); the older ones are kept" in line
    assert last.startswith(f"mlm_dist: error: {run_dir} has no checkpoint of step 240: make room on the disk")
    assert intact_steps(run_dir) == before
    assert not (run_dir / "DONE").exists()
    run_to_end(command)
    assert_same_run(run_dir, reference_run)


def test_a_disk_that_is_full_for_a_while_changes_nothing(corpus_folder, reference_run, tmp_path):
    with small_disk(tmp_path / "disk", "2m") as disk:
        run_dir = disk / "run"
        with running(train_command(corpus_folder, run_dir)) as process:
            wait_until(process, has_reached(run_dir, 50))
            with paused(process):
                before, filler = intact_steps(run_dir), fill_up(disk)
            assert process.stderr
            reported = [process.stderr.readline() for _ in range(2)]  # metrics and a checkpoint
            with paused(process):
                assert set(intact_steps(run_dir)) >= set(before)
                filler.unlink()
            code, _, stderr = wait_for_exit(process)
        assert any("metrics.jsonl cannot be written (No space left on device)" in line for line in reported)
        assert any("a checkpoint could not be written (No space left on device)" in line for line in reported)
        assert code == 0, stderr
        assert_same_run(run_dir, reference_run)


def test_a_disk_that_stays_full_is_an_error_and_the_run_resumes_once_there_is_room(
    corpus_folder, reference_run, tmp_path
):
    with small_disk(tmp_path / "disk", "2m") as disk:
        run_dir = disk / "run"
        command = train_command(corpus_folder, run_dir)
        with running(command) as process:
            wait_until(process, has_reached(run_dir, 50))
            with paused(process):
                filler = fill_up(disk)
            code, _, stderr = wait_for_exit(process)
        assert code == 1
        assert "Traceback" not in stderr
        assert f"error: {run_dir} cannot be written (No space left on device)" in stderr.splitlines()[-1]
        filler.unlink()
        run_to_end(command)
        assert_same_run(run_dir, reference_run)


def test_a_disk_too_small_for_the_checkpoints_is_refused_at_the_start(corpus_folder, tmp_path):
    with small_disk(tmp_path / "disk", "300k") as disk:
        result = start(train_command(corpus_folder, disk / "run"))
        assert result.returncode == 2
        (line,) = result.stderr.splitlines()
        assert " more for 5 checkpoints" in line
        assert "lower checkpoint.keep" in line
        assert list(disk.iterdir()) == []


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=[pytest.mark.multiprocess, pytest.mark.long])])
def test_a_full_log_file_does_not_stop_a_run(processes, corpus_folder, reference_run, two_rank_reference, tmp_path):
    command = shlex.join(train_command(corpus_folder, tmp_path / "run", processes))
    result = start(["bash", "-c", f"{command} >/dev/full 2>/dev/full"])
    assert result.returncode == 0
    assert_same_run(tmp_path / "run", two_rank_reference if processes > 1 else reference_run)


def test_a_closed_pipe_does_not_stop_a_run(corpus_folder, reference_run, tmp_path):
    command = shlex.join(train_command(corpus_folder, tmp_path / "run"))
    result = start(["bash", "-c", f"set -o pipefail; {command} | head -n 1"])
    assert (result.returncode, result.stderr) == (0, "")
    assert_same_run(tmp_path / "run", reference_run)
