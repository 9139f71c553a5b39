"""slurm/train.sh on a real cluster of two nodes: after any fault of a job, the run ends in the same bits."""

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

NO_PROGRESS = "made no progress since it started: it is not requeued"
REQUEUED = "is requeued"
TORCHRUN = (sys.executable, "--rdzv_backend=c10d")
TRAINER = ("-u", "-m", "mlm_dist.train")  # as torchrun starts it
FREEZER = Path("/sys/fs/cgroup/freezer")
PATIENCE = 180.0  # seconds for what takes 10 to 20 on an idle machine


class Job:
    """A run, and the job that trains it, by default on two nodes.

    Attributes:
        run_dir: the run directory.
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
        """The output of the job, over all its starts."""
        path = Path(f"{self.run_dir}-{self.id}.out")
        return path.read_text() if path.exists() else ""

    def end(self, state: str, restarts: int | range) -> None:
        """Wait until the job has ended in a state, and check how often it was restarted."""
        seen = self.cluster.wait(self.id, {state}, PATIENCE)
        allowed = restarts if isinstance(restarts, range) else [restarts]
        assert int(seen["Restarts"]) in allowed, self.log

    def wait_for_log(self, text: str) -> None:
        self.cluster.wait(self.id, lambda _: text in self.log, PATIENCE)

    def wait_for_step(self, step: int) -> None:
        """Wait until the run has reached a step, with little delay."""
        reached = has_reached(self.run_dir, step)

        def reached_soon(_: object) -> bool:
            end = time.monotonic() + 1
            while not reached() and time.monotonic() < end:
                time.sleep(0.005)
            return reached()

        self.cluster.wait(self.id, reached_soon, PATIENCE)

    def processes(self, *words: str) -> dict[str, int]:
        """Ids of the job's processes whose arguments include these words, by node."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has just ended
                arguments = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
                lines = (process / "environ").read_bytes().decode(errors="replace").split("\0")
                environment = dict(line.split("=", maxsplit=1) for line in lines if "=" in line)
                in_cluster = environment.get("SLURM_CONF") == str(self.cluster.configuration)
                if in_cluster and environment.get("SLURM_JOB_ID") == str(self.id) and set(words) <= set(arguments):
                    found[environment["SLURMD_NODENAME"]] = int(process.name)
        return found

    def trainers(self) -> dict[str, int]:
        """Ids of the training processes, by node."""
        return self.processes(*TRAINER)

    def send(self, signum: signal.Signals) -> None:
        """Send a signal to the training processes."""
        for pid in self.trainers().values():
            with suppress(ProcessLookupError):
                os.kill(pid, signum)

    @contextmanager
    def paused(self, step: int | None) -> Iterator[None]:
        """Pause the run at a step, or shortly after, for the duration of the block. None: during startup.

        If Slurm sends TERM, it ends the pause, because it sends CONT first.
        """
        if step is None:
            self.cluster.wait(self.id, lambda _: len(self.trainers()) == 2, PATIENCE)
        else:
            self.wait_for_step(step)
        self.send(signal.SIGSTOP)
        try:
            assert not (self.run_dir / "DONE").exists(), "the run was done before it could be paused"
            yield
        finally:
            self.send(signal.SIGCONT)


def test_two_nodes_train_one_model_and_the_log_reports_how_to_continue(
    cluster, corpus_folder, two_rank_reference, tmp_path
):
    job = Job(cluster, corpus_folder, tmp_path / "run")
    job.end("COMPLETED", restarts=0)
    assert_same_run(job.run_dir, two_rank_reference)
    assert "on n[1-2]: processes per node: 1" in job.log
    assert "2 x cpu, step 0 to 240" in job.log
    assert f"the run is in {job.run_dir}" in job.log
    continues = re.search(r"`(sbatch --nodes=2 slurm/train.sh .*)` continues it", job.log)
    assert continues
    assert set(continues[1].split()) >= set(tiny_flags(corpus_folder, job.run_dir, **SETTINGS))


@pytest.mark.long
def test_a_run_continues_after_its_time_limit_and_after_scancel(cluster, corpus_folder, two_rank_reference, tmp_path):
    run_dir = tmp_path / "run"
    first = Job(cluster, corpus_folder, run_dir, "--time=60", "--signal=B:USR1@110")
    with first.paused(50):
        # Slurm checks every 30 s, and sends a warning that falls due before the next check.
        cluster.run("scontrol", "update", f"JobId={first.id}", "TimeLimit=2")
        cluster.wait(first.id, lambda _: (run_dir / "STOP").exists(), PATIENCE)
    cluster.wait(first.id, {"PENDING"}, PATIENCE)
    cluster.run("scontrol", "update", f"JobId={first.id}", "TimeLimit=60")
    assert REQUEUED in first.log
    assert f"stopped by {run_dir / 'STOP'} at step " in first.log

    with first.paused(130):
        cluster.run("scancel", first.id)
        first.wait_for_log("stopped by SIGTERM at step ")
    first.end("CANCELLED", restarts=1)
    assert first.log.count(REQUEUED) == 1
    assert not (run_dir / "DONE").exists()

    (run_dir / "STOP").touch()  # left behind by a request that came too late
    second = Job(cluster, corpus_folder, run_dir)
    second.end("COMPLETED", restarts=0)
    assert_same_run(run_dir, two_rank_reference)


@pytest.mark.long
def test_a_preempted_job_is_requeued_even_before_its_first_step(cluster, corpus_folder, two_rank_reference, tmp_path):
    job = Job(cluster, corpus_folder, tmp_path / "run")

    def preempt() -> None:
        high = cluster.submit("--nodes=2", "--exclusive", "--partition=high", "--wrap", "true", cwd=tmp_path)
        cluster.wait(high, {"COMPLETED"}, PATIENCE)

    def stopped_at() -> list[int]:
        return [int(step) for step in re.findall(r"stopped by SIGTERM at step (\d+)", job.log)]

    # TERM kills a process that is still starting up; a later one stops at step 0.
    with job.paused(step=None):
        preempt()
    assert set(stopped_at()) <= {0}
    assert not list_checkpoints(job.run_dir / "checkpoints")
    with job.paused(50):
        preempt()
    assert max(stopped_at()) >= 50
    job.end("COMPLETED", restarts=2)
    assert_same_run(job.run_dir, two_rank_reference)


@pytest.fixture
def tracking_cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster that tracks the processes of a job by cgroup, like real clusters, if this machine permits it."""
    if reason := find_missing():
        pytest.skip(reason)
    remove_groups()
    if not os.access(FREEZER, os.W_OK) or list(FREEZER.glob("slurm_n*")):
        pytest.skip(f"{FREEZER} is not writable, or another cluster uses it")
    folder = tmp_path / "slurm"
    folder.mkdir()
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    try:
        with Cluster(folder, extra="ProctrackType=proctrack/cgroup") as running:
            yield running
    finally:
        remove_groups()


def remove_groups() -> None:
    """Remove empty cgroups that the nodes of a cluster left behind."""
    for root in FREEZER.glob("slurm_n*"):
        for folder, _, _ in os.walk(root, topdown=False):
            with suppress(OSError):
                Path(folder).rmdir()


@pytest.mark.long
def test_a_signal_to_torchrun_and_its_workers_is_harmless(
    tracking_cluster, corpus_folder, two_rank_reference, tmp_path
):
    job = Job(tracking_cluster, corpus_folder, tmp_path / "run")
    with job.paused(50):
        tracking_cluster.run("scancel", "--signal=USR1", job.id)
        job.wait_for_log("SIGUSR1")  # torchrun passes it on
    job.end("COMPLETED", restarts=1)
    assert "stopped by SIGUSR1 at step " in job.log
    assert_same_run(job.run_dir, two_rank_reference)


@pytest.mark.long
def test_training_continues_after_the_loss_of_any_process(cluster, corpus_folder, two_rank_reference, tmp_path):
    job = Job(cluster, corpus_folder, tmp_path / "run")
    for node, step in (("n2", 30), ("n1", 90)):
        job.wait_for_step(step)
        os.kill(job.trainers()[node], signal.SIGKILL)
    job.wait_for_step(120)
    assert cluster.job(job.id)["Restarts"] == "0"
    assert job.log.count("2 x cpu, step ") == 3
    # If its torchrun is killed as well, a node is lost until the job is restarted.
    for words in (TORCHRUN, TRAINER):
        os.kill(job.processes(*words)["n2"], signal.SIGKILL)
    job.wait_for_log(REQUEUED)
    job.end("COMPLETED", restarts=1)
    assert_same_run(job.run_dir, two_rank_reference)


@pytest.mark.long
def test_a_run_continues_after_the_loss_of_either_node(cluster, corpus_folder, two_rank_reference, tmp_path):
    job = Job(cluster, corpus_folder, tmp_path / "run")
    for node, step in (("n2", 50), ("n1", 130)):
        job.wait_for_step(step)
        try:
            cluster.cut_off(node)
        finally:
            cluster.give_back(node)
    # On a busy machine, Slurm's late attempts to kill what ran on the lost node can end the next start of the job, too.
    job.end("COMPLETED", restarts=range(2, 5))
    assert_same_run(job.run_dir, two_rank_reference)


def test_a_job_without_progress_is_not_requeued(cluster, corpus_folder, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "DONE").touch()  # as if the training continued with more steps
    job = Job(cluster, corpus_folder, tmp_path / "run")
    with job.paused(50):
        cluster.run("scancel", "--batch", "--signal=USR1", job.id)
        cluster.wait(job.id, lambda _: (job.run_dir / "STOP").exists(), PATIENCE)
    job.wait_for_log(f"job {job.id}, start 1")
    newest = list_checkpoints(job.run_dir / "checkpoints")
    cluster.run("scancel", "--batch", "--signal=USR1", job.id)
    job.end("FAILED", restarts=1)
    assert f"job {job.id} {NO_PROGRESS}" in job.log
    assert list_checkpoints(job.run_dir / "checkpoints") == newest


def test_an_error_found_by_the_training_only_ends_the_job(cluster, corpus_folder, run_dir, tmp_path, monkeypatch):
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
