"""The temporary Slurm cluster does what the tests of the batch script need."""

from contextlib import suppress
from pathlib import Path

import pytest

from tests.faults.slurm.cluster import Cluster, find_missing

pytestmark = pytest.mark.slow

BOTH_NODES = ("--nodes=2", "--exclusive", "--requeue")

# A job that prints how often it has been restarted. The first start then runs a step, later ones end at once.
STAY = """#!/bin/bash
echo "start ${SLURM_RESTART_COUNT:-0}"
[ -n "$SLURM_RESTART_COUNT" ] || srun bash -c "$1"
"""


def write_script(folder: Path) -> Path:
    script = folder / "job.sh"
    script.write_text(STAY)
    return script


def wait_for_output(cluster: Cluster, job: int, text: str, seconds: float = 60) -> dict[str, str]:
    def is_printed(seen: dict[str, str]) -> bool:
        output = Path(seen["StdOut"])
        return output.is_file() and text in output.read_text()

    return cluster.wait(job, is_printed, seconds)


def find_processes(word: str) -> set[int]:
    """Ids of the running processes with this word in their environment."""
    found = set()
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if word in environment.read_bytes().decode(errors="replace"):
                found.add(int(environment.parent.name))
    return found


def test_a_job_on_two_nodes_runs_a_step_on_each(cluster: Cluster, tmp_path: Path):
    job = cluster.submit(*BOTH_NODES, "--wrap", "srun sh -c 'echo \"$SLURMD_NODENAME $WORD\"'", cwd=tmp_path, WORD="hi")

    seen = cluster.wait(job, {"COMPLETED"}, 60)

    assert (seen["ExitCode"], seen["Restarts"]) == ("0:0", "0")
    assert sorted((tmp_path / f"slurm-{job}.out").read_text().splitlines()) == ["n1 hi", "n2 hi"]


def test_a_job_does_not_see_the_job_or_the_torchrun_of_the_tests(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("SBATCH_PARTITION", "SLURM_RESTART_COUNT", "RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "7")
    job = cluster.submit("--wrap", "env", cwd=tmp_path)

    cluster.wait(job, {"COMPLETED"}, 60)

    assert [line for line in (tmp_path / f"slurm-{job}.out").read_text().splitlines() if line.endswith("=7")] == []


def test_a_requeued_job_runs_again_soon(cluster: Cluster, tmp_path: Path):
    job = cluster.submit(*BOTH_NODES, write_script(tmp_path), "echo here; sleep 300", cwd=tmp_path)
    wait_for_output(cluster, job, "here")

    cluster.run("scontrol", "requeue", job)
    seen = cluster.wait(job, {"COMPLETED"}, 60)

    assert seen["Restarts"] == "1"
    assert "start 1" in Path(seen["StdOut"]).read_text()


def test_no_process_is_left_running(tmp_path: Path):
    if reason := find_missing():
        pytest.skip(reason)
    pids = tmp_path / "pids"
    # A process of a step, and a background process.
    script = "setsid sleep 1234 & echo $! >>pids; srun sh -c 'echo $$ >>pids; sleep 1234'"

    with Cluster(tmp_path, nodes=1) as cluster:
        job = cluster.submit("--wrap", script, cwd=tmp_path)
        cluster.wait(job, lambda _: pids.is_file() and len(pids.read_text().split()) == 2, 60)
        running = find_processes(str(cluster.configuration))
        assert running >= {int(pid) for pid in pids.read_text().split()}

    assert find_processes(str(cluster.configuration)) == set()


def test_a_cluster_that_does_not_start_reports_why_and_leaves_no_process(tmp_path: Path):
    if reason := find_missing():
        pytest.skip(reason)

    with pytest.raises(AssertionError, match="SelectType"), Cluster(tmp_path, extra="SelectType=select/none"):
        pass

    assert find_processes(str(tmp_path / "slurm.conf")) == set()
