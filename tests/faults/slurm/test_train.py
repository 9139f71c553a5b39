"""slurm/train.sh on a real cluster of two nodes: whatever happens to a job, the run ends in the same bits."""

import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from mlm_dist.run.checkpoint import list_checkpoints
from tests.conftest import REPOSITORY, tiny_flags
from tests.faults.conftest import SETTINGS, assert_same_run, has_reached
from tests.faults.slurm.cluster import SEARCH_PATH, Cluster, find_missing

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess, pytest.mark.timeout(600)]

NO_PROGRESS = "has made no progress since it started and does not go back into the queue"
GOES_BACK = "goes back into the queue"
TORCHRUN = (sys.executable, "--rdzv_backend=c10d")
TRAINER = ("-u", "-m", "mlm_dist.train")  # how torchrun starts one
FREEZER = Path("/sys/fs/cgroup/freezer")
PATIENCE = 180.0  # seconds for anything that takes ten or twenty when nobody else is at work


class Job:
    """A run and the job that trains it, of two nodes unless told otherwise.

    Attributes:
        run_dir: of the run.
    """

    def __init__(self, cluster: Cluster, corpus: Path, run_dir: Path, *options: object, **overrides: object) -> None:
        self.cluster = cluster
        self.run_dir = run_dir
        self.id = cluster.submit(
            "--nodes=2",
            f"--output={run_dir}-%j.out",
            *options,
            "slurm/train.sh",
            *tiny_flags(corpus, run_dir, **(SETTINGS | overrides)),
            cwd=REPOSITORY,
            PATH=f"{Path(sys.executable).parent}:{SEARCH_PATH}",
            PYTHONPATH=str(REPOSITORY),
            OMP_NUM_THREADS="1",
        )

    @property
    def log(self) -> str:
        """What the job has printed, in all its starts."""
        path = Path(f"{self.run_dir}-{self.id}.out")
        return path.read_text() if path.exists() else ""

    def end(self, state: str, restarts: int) -> None:
        """Wait for the job's end and see that it is the one expected."""
        seen = self.cluster.wait(self.id, {state}, PATIENCE)
        assert seen["Restarts"] == str(restarts), self.log

    def wait_for_log(self, text: str) -> None:
        self.cluster.wait(self.id, lambda _: text in self.log, PATIENCE)

    def wait_for_step(self, step: int) -> None:
        """Wait until the run has come to a step, and not much further."""
        reached = has_reached(self.run_dir, step)

        def reached_soon(_: object) -> bool:
            end = time.monotonic() + 1
            while not reached() and time.monotonic() < end:
                time.sleep(0.005)
            return reached()

        self.cluster.wait(self.id, reached_soon, PATIENCE)

    def processes(self, *words: str) -> dict[str, int]:
        """Ids of the job's processes with these words among their arguments, by node."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has just ended
                arguments = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
                lines = (process / "environ").read_bytes().decode(errors="replace").split("\0")
                environment = dict(line.split("=", maxsplit=1) for line in lines if "=" in line)
                ours = environment.get("SLURM_CONF") == str(self.cluster.configuration)
                if ours and environment.get("SLURM_JOB_ID") == str(self.id) and set(words) <= set(arguments):
                    found[environment["SLURMD_NODENAME"]] = int(process.name)
        return found

    def trainers(self) -> dict[str, int]:
        """Ids of the processes that train, by node."""
        return self.processes(*TRAINER)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the processes that train."""
        for pid in self.trainers().values():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    @contextmanager
    def held(self, step: int | None) -> Iterator[None]:
        """Hold the run at a step, or shortly after, so that what the block does meets it there; with None in start-up.

        Slurm lets it go by itself where it sends TERM: it sends CONT before that.
        """
        if step is None:
            self.cluster.wait(self.id, lambda _: len(self.trainers()) == 2, PATIENCE)
        else:
            self.wait_for_step(step)
        self.send(signal.SIGSTOP)
        try:
            assert not (self.run_dir / "DONE").exists(), "the run was faster than the test"
            yield
        finally:
            self.send(signal.SIGCONT)


def test_two_nodes_train_one_model_and_the_log_says_how_to_continue(cluster, corpus_folder, unbroken_pair, tmp_path):
    job = Job(cluster, corpus_folder, tmp_path / "run")
    job.end("COMPLETED", restarts=0)
    assert_same_run(job.run_dir, unbroken_pair)
    assert "on n[1-2]: 1 processes a node" in job.log
    assert "2 x cpu, step 0 to 240" in job.log
    assert f"the run is in {job.run_dir}" in job.log
    continues = re.search(r"`(sbatch --nodes=2 slurm/train.sh .*)` continues it", job.log)
    assert continues
    assert set(continues[1].split()) >= set(tiny_flags(corpus_folder, job.run_dir, **SETTINGS))


def test_a_run_goes_on_after_its_time_limit_and_after_scancel(cluster, corpus_folder, unbroken_pair, tmp_path):
    run_dir = tmp_path / "run"
    first = Job(cluster, corpus_folder, run_dir, "--time=60", "--signal=B:USR1@110")
    with first.held(50):
        # Slurm looks every 30 s, and warns of what may come before it looks again.
        cluster.run("scontrol", "update", f"JobId={first.id}", "TimeLimit=2")
        cluster.wait(first.id, lambda _: (run_dir / "STOP").exists(), PATIENCE)
    cluster.wait(first.id, {"PENDING"}, PATIENCE)
    cluster.run("scontrol", "update", f"JobId={first.id}", "TimeLimit=60")
    assert GOES_BACK in first.log
    assert f"stopped by {run_dir / 'STOP'} at step " in first.log

    with first.held(130):
        cluster.run("scancel", first.id)
        first.wait_for_log("stopped by SIGTERM at step ")
    first.end("CANCELLED", restarts=1)
    assert first.log.count(GOES_BACK) == 1
    assert not (run_dir / "DONE").exists()

    (run_dir / "STOP").touch()  # as one that came too late leaves behind
    second = Job(cluster, corpus_folder, run_dir)
    second.end("COMPLETED", restarts=0)
    assert_same_run(run_dir, unbroken_pair)


def test_a_preempted_job_goes_back_into_the_queue_before_its_first_step_too(
    cluster, corpus_folder, unbroken_pair, tmp_path
):
    job = Job(cluster, corpus_folder, tmp_path / "run")

    def preempt() -> None:
        high = cluster.submit("--nodes=2", "--exclusive", "--partition=high", "--wrap", "true", cwd=tmp_path)
        cluster.wait(high, {"COMPLETED"}, PATIENCE)

    def stopped_at() -> list[int]:
        return [int(step) for step in re.findall(r"stopped by SIGTERM at step (\d+)", job.log)]

    # TERM ends a process that is still starting up, or, if it is further than that, it stops at step 0.
    with job.held(step=None):
        preempt()
    assert set(stopped_at()) <= {0}
    assert not list_checkpoints(job.run_dir / "checkpoints")
    with job.held(50):
        preempt()
    assert max(stopped_at()) >= 50
    job.end("COMPLETED", restarts=2)
    assert_same_run(job.run_dir, unbroken_pair)


@pytest.fixture
def tracking_cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster that keeps track of a job's processes by cgroup, as real ones do, where this machine lets it."""
    if reason := find_missing():
        pytest.skip(reason)
    remove_groups()
    if not os.access(FREEZER, os.W_OK) or list(FREEZER.glob("slurm_n*")):
        pytest.skip(f"{FREEZER} cannot be written, or another cluster uses it")
    folder = tmp_path / "slurm"
    folder.mkdir()
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    try:
        with Cluster(folder, extra="ProctrackType=proctrack/cgroup") as running:
            yield running
    finally:
        remove_groups()


def remove_groups() -> None:
    """Remove the empty cgroups that the nodes of a cluster leave behind."""
    for root in FREEZER.glob("slurm_n*"):
        for folder, _, _ in os.walk(root, topdown=False):
            with suppress(OSError):
                Path(folder).rmdir()


def test_a_signal_that_reaches_torchrun_too_does_no_harm(tracking_cluster, corpus_folder, unbroken_pair, tmp_path):
    job = Job(tracking_cluster, corpus_folder, tmp_path / "run")
    with job.held(50):
        tracking_cluster.run("scancel", "--signal=USR1", job.id)
        job.wait_for_log("SIGUSR1")  # torchrun passes it on
    job.end("COMPLETED", restarts=1)
    assert "stopped by SIGUSR1 at step " in job.log
    assert_same_run(job.run_dir, unbroken_pair)


def test_training_goes_on_after_the_loss_of_any_process(cluster, corpus_folder, unbroken_pair, tmp_path):
    job = Job(cluster, corpus_folder, tmp_path / "run")
    for node, step in (("n2", 30), ("n1", 90)):
        job.wait_for_step(step)
        os.kill(job.trainers()[node], signal.SIGKILL)
    job.wait_for_step(120)
    assert cluster.job(job.id)["Restarts"] == "0"
    assert job.log.count("2 x cpu, step ") == 3
    # With its torchrun gone as well, a node is of no use until the job starts again.
    for words in (TORCHRUN, TRAINER):
        os.kill(job.processes(*words)["n2"], signal.SIGKILL)
    job.wait_for_log(GOES_BACK)
    job.end("COMPLETED", restarts=1)
    assert_same_run(job.run_dir, unbroken_pair)


def test_a_run_goes_on_after_the_loss_of_either_node(cluster, corpus_folder, unbroken_pair, tmp_path):
    job = Job(cluster, corpus_folder, tmp_path / "run")
    for node, step in (("n2", 50), ("n1", 130)):
        job.wait_for_step(step)
        try:
            cluster.cut_off(node)
        finally:
            cluster.give_back(node)
    job.end("COMPLETED", restarts=2)
    assert_same_run(job.run_dir, unbroken_pair)


def test_a_job_that_comes_no_further_does_not_go_back_into_the_queue(cluster, corpus_folder, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "DONE").touch()  # the training goes on from there with more steps, say
    job = Job(cluster, corpus_folder, tmp_path / "run")
    with job.held(50):
        cluster.run("scancel", "--batch", "--signal=USR1", job.id)
        cluster.wait(job.id, lambda _: (job.run_dir / "STOP").exists(), PATIENCE)
    job.wait_for_log(f"job {job.id}, start 1")
    newest = list_checkpoints(job.run_dir / "checkpoints")
    cluster.run("scancel", "--batch", "--signal=USR1", job.id)
    job.end("FAILED", restarts=1)
    assert f"job {job.id} {NO_PROGRESS}" in job.log
    assert list_checkpoints(job.run_dir / "checkpoints") == newest


def test_a_mistake_that_only_the_training_finds_ends_the_job(cluster, corpus_folder, run_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("MAX_RESTARTS", "0")
    shutil.copytree(run_dir, tmp_path / "run")
    job = Job(cluster, corpus_folder, tmp_path / "run", seed=5)
    job.end("FAILED", restarts=0)
    assert [line for line in job.log.splitlines() if "mlm_dist: error: " in line and "seed" in line]
    assert f"job {job.id} {NO_PROGRESS}" in job.log


def test_a_misspelt_flag_ends_the_job_with_one_line(cluster, corpus_folder, tmp_path):
    job = Job(cluster, corpus_folder, tmp_path / "run", train__max_itres=5)
    job.end("FAILED", restarts=0)
    assert len(job.log.splitlines()) == 1
    assert "max_itres" in job.log
    assert not job.run_dir.exists()
