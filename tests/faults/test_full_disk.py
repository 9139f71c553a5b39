"""A full disk costs warnings: older checkpoints stay, training goes on; what is missing at the end is an error."""

import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mlm_dist.run.checkpoint import find_damage, list_checkpoints, step_of
from tests.conftest import start
from tests.faults.conftest import assert_same_run, complete, end, has_reached, held, running, train_command, wait_until

pytestmark = pytest.mark.slow


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A disk of its own for a folder."""
    folder.mkdir()
    mounted = start(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)])
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        assert start(["umount", str(folder)]).returncode == 0


def fill(disk: Path) -> Path:
    """Write a file until nothing more fits."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return filler


def steps(run_dir: Path) -> list[int]:
    """The steps of the checkpoints that are whole."""
    return [step_of(place) for place in list_checkpoints(run_dir / "checkpoints") if not find_damage(place)]


def test_files_that_may_not_grow_cost_checkpoints_but_no_training(corpus_folder, unbroken, tmp_path):
    run_dir = tmp_path / "run"
    command = train_command(corpus_folder, run_dir)
    with running(command) as process:
        wait_until(process, has_reached(run_dir, 65))
        process.send_signal(signal.SIGUSR1)
        assert end(process)[0] == 0
    before = steps(run_dir)
    state = next(run_dir.glob("checkpoints/*/state.pt")).stat().st_size
    result = start(["prlimit", f"--fsize={state - 1}", *command])
    assert result.returncode == 1
    *warnings, last = result.stderr.splitlines()
    assert warnings
    for line in warnings:
        assert "a checkpoint could not be written (File too large); the older ones are kept" in line
    assert last.startswith(f"mlm_dist: error: {run_dir} has no checkpoint of step 240: make room on the disk")
    assert steps(run_dir) == before
    assert not (run_dir / "DONE").exists()
    complete(command)
    assert_same_run(run_dir, unbroken)


def test_a_disk_that_is_full_for_a_while_costs_nothing(corpus_folder, unbroken, tmp_path):
    with small_disk(tmp_path / "disk", "2m") as disk:
        run_dir = disk / "run"
        with running(train_command(corpus_folder, run_dir)) as process:
            wait_until(process, has_reached(run_dir, 50))
            with held(process):
                before, filler = steps(run_dir), fill(disk)
            assert process.stderr
            said = [process.stderr.readline() for _ in range(2)]  # metrics and a checkpoint
            with held(process):
                assert set(steps(run_dir)) >= set(before)
                filler.unlink()
            code, _, stderr = end(process)
        assert any("metrics.jsonl cannot be written (No space left on device)" in line for line in said)
        assert any("a checkpoint could not be written (No space left on device)" in line for line in said)
        assert code == 0, stderr
        assert_same_run(run_dir, unbroken)


def test_a_disk_that_stays_full_is_said_and_the_run_goes_on_once_there_is_room(corpus_folder, unbroken, tmp_path):
    with small_disk(tmp_path / "disk", "2m") as disk:
        run_dir = disk / "run"
        command = train_command(corpus_folder, run_dir)
        with running(command) as process:
            wait_until(process, has_reached(run_dir, 50))
            with held(process):
                filler = fill(disk)
            code, _, stderr = end(process)
        assert code == 1
        assert "Traceback" not in stderr
        assert f"error: {run_dir} cannot be written (No space left on device)" in stderr.splitlines()[-1]
        filler.unlink()
        complete(command)
        assert_same_run(run_dir, unbroken)


def test_a_disk_without_room_for_the_checkpoints_is_refused_at_the_start(corpus_folder, tmp_path):
    with small_disk(tmp_path / "disk", "300k") as disk:
        result = start(train_command(corpus_folder, disk / "run"))
        assert result.returncode == 2
        (line,) = result.stderr.splitlines()
        assert " more for 5 checkpoints" in line
        assert "lower checkpoint.keep" in line
        assert list(disk.iterdir()) == []


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.multiprocess)])
def test_a_log_that_takes_nothing_ends_no_run(processes, corpus_folder, unbroken, unbroken_pair, tmp_path):
    command = shlex.join(train_command(corpus_folder, tmp_path / "run", processes))
    result = start(["bash", "-c", f"{command} >/dev/full 2>/dev/full"])
    assert result.returncode == 0
    assert_same_run(tmp_path / "run", unbroken_pair if processes > 1 else unbroken)


def test_a_reader_that_leaves_ends_no_run(corpus_folder, unbroken, tmp_path):
    command = shlex.join(train_command(corpus_folder, tmp_path / "run"))
    result = start(["bash", "-c", f"set -o pipefail; {command} | head -n 1"])
    assert (result.returncode, result.stderr) == (0, "")
    assert_same_run(tmp_path / "run", unbroken)
