"""A temporary Slurm cluster for tests: real daemons, all nodes on this machine, removed after the `with` block.

The nodes n1, n2, ... are slurmd processes that differ in name and port. They have no host names of their own:
`scontrol show node` gives their address (NodeAddr, always 127.0.0.1). Partition `low` is the default. A job in `high`
that needs their nodes preempts jobs in `low`, which are requeued.
"""

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Self

SEARCH_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/usr/bin:/sbin:/bin"
BINARIES = ("munged", "munge", "slurmctld", "slurmd", "srun", "sbatch", "scontrol", "squeue", "scancel")
TORCHRUN = re.compile(r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|(TORCHELASTIC|PET)_.*")
FINAL = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"}

# Become the parent of orphaned descendants, then execute the command line. slurmd orphans each slurmstepd, which would
# otherwise become a child of process 1.
ADOPT = "import ctypes, os, sys; ctypes.CDLL(None).prctl(36, 1, 0, 0, 0); os.execvp(sys.argv[1], sys.argv[1:])"

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
{binding}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job starts again only after the credential of its last start has expired: by default after 120 s.
AuthInfo=socket={socket},cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
MailProg=/bin/true
PropagateResourceLimits=NONE
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=1
# Nodes may claim more CPUs than the machine has.
SlurmdParameters=config_overrides
SlurmdTimeout=10
KillWait={kill_wait}
MinJobAge=3600
ReturnToService=2
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace} MaxTime=INFINITE
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE
"""


def find_missing() -> str | None:
    """Why Slurm cannot run here, or None if it can."""
    if missing := [name for name in BINARIES if not shutil.which(name, path=SEARCH_PATH)]:
        return f"Slurm needs {', '.join(missing)} (Debian: apt-get install munge slurmctld slurmd slurm-client)."
    return None if os.geteuid() == 0 else "Slurm's daemons must be started by root."


def find_ports(count: int) -> int:
    """The first of `count` consecutive free ports, below the ephemeral ports of the system."""
    for _ in range(100):
        first, held = random.randrange(16000, 28000), []
        with suppress(OSError):
            for port in range(first, first + count):
                held.append(socket.create_server(("", port)))
        for server in held:
            server.close()
        if len(held) == count:
            return first
    raise OSError(f"no {count} consecutive free ports found")


def find_descendants(ancestor: int) -> list[int]:
    """Ids of the running descendants of a process."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            state, parent, *_ = stat.read_text().rpartition(")")[2].split()
            if state not in "ZX":
                children.setdefault(int(parent), []).append(int(stat.parent.name))
    found = [ancestor]
    for pid in found:  # which grows meanwhile
        found += children.get(pid, [])
    return found[1:]


def cut_power(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all its descendants, without warning."""
    process.send_signal(signal.SIGSTOP)  # first, so that it does not start or lose descendants
    end = time.monotonic() + 30
    while living := find_descendants(process.pid):
        assert time.monotonic() < end, f"processes survive SIGKILL: {living}"
        for pid in living:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    process.kill()
    process.wait()


class Cluster:
    """A cluster of `nodes` nodes with `cpus` CPUs each, with all its state in `folder`.

    If a job is cancelled, requeued or out of time, `kill_wait` seconds pass between SIGTERM and SIGKILL. The steps of
    a preempted job get a SIGTERM before that, and then `grace` seconds, or up to `kill_wait` + 10 if that is more,
    because the scheduler does not check earlier. `extra` is appended to slurm.conf.
    """

    def __init__(
        self, folder: Path, nodes: int = 2, cpus: int = 1, extra: str = "", kill_wait: int = 10, grace: int = 60
    ) -> None:
        self.folder = folder.resolve()
        self.nodes = [f"n{i}" for i in range(1, nodes + 1)]
        self.socket = self.folder / "munge.sock"
        self.configuration = self.folder / "slurm.conf"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

        longest_socket = self.folder / self.nodes[-1] / f"{self.nodes[-1]}_1000.4294967291"
        assert len(str(longest_socket)) < 108, f"the path is too long for sockets: {self.folder}"
        for name in ("state", *self.nodes):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        port = find_ports(nodes + 1)
        # Slurm binds to the host name. If that is a loopback address, use the loopback device only.
        local = socket.gethostbyname(socket.gethostname()).startswith("127.")
        text = CONFIGURATION.format(
            host=socket.gethostname().split(".")[0],
            port=port,
            binding="CommunicationParameters=NoCtldInAddrAny,NoInAddrAny" if local else "",
            socket=self.socket,
            folder=self.folder,
            kill_wait=kill_wait,
            grace=grace,
        )
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20
        for i, node in enumerate(self.nodes, start=1):
            text += f"NodeName={node} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port + i} "
            text += f"CPUs={cpus} RealMemory={memory} State=UNKNOWN\n"
        self.configuration.write_text(text + extra + "\n")

    def __enter__(self) -> Self:
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        options = {"socket": self.socket, "key-file": key}
        options |= {f"{name}-file": self.folder / f"munge.{name}" for name in ("pid", "log", "seed")}
        try:
            # --force: munged refuses folders that only root can enter, such as those of pytest.
            self._start("munged", "--foreground", "--force", *(f"--{name}={value}" for name, value in options.items()))
            self._until("munged answers", self.socket.is_socket)
            self._start("slurmctld", "-D")
            self._until("slurmctld answers", lambda: " UP" in self.run("scontrol", "ping", check=False))
            for node in self.nodes:
                self._start(node, "-D", "-N", node)
            self._until("all nodes are idle", lambda: all(self.node(node)["State"] == "IDLE" for node in self.nodes))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in (*self.nodes, "slurmctld", "munged"):
            if name in self._processes:
                cut_power(self._processes.pop(name))

    def run(self, *command: object, check: bool = True, cwd: Path | None = None, **environment: str) -> str:
        """The output of a Slurm command (sbatch, scontrol, squeue, scancel, ...)."""
        variables = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SLURM", "SBATCH", "SRUN", "SQUEUE")) and not TORCHRUN.fullmatch(name)
        }
        variables |= {"PATH": SEARCH_PATH, "SLURM_CONF": str(self.configuration)} | environment
        words = [str(word) for word in command]
        result = subprocess.run(words, capture_output=True, text=True, cwd=cwd, env=variables, timeout=120, check=False)
        assert not check or result.returncode == 0, f"{words} exited with {result.returncode}: {result.stderr}"
        return result.stdout.strip()

    def submit(self, *arguments: object, cwd: Path | None = None, **environment: str) -> int:
        """Submit a batch job and return its id. It has the environment of the tests, updated with `environment`."""
        return int(self.run("sbatch", "--parsable", *arguments, check=True, cwd=cwd, **environment))

    def job(self, job: int) -> dict[str, str]:
        """Slurm's record of a job: JobState, Reason, Restarts, ExitCode, StdOut, ..."""
        return self._show("job", str(job))

    def node(self, node: str) -> dict[str, str]:
        """Slurm's record of a node: State, NodeAddr, SlurmdStartTime, ..."""
        return self._show("node", node)

    def state(self, job: int) -> str:
        """A job's state: PENDING, RUNNING, COMPLETING, COMPLETED, ..."""
        return self.job(job)["JobState"]

    def wait(
        self, job: int, until: Collection[str] | Callable[[dict[str, str]], bool], seconds: float
    ) -> dict[str, str]:
        """Wait until a job is in one of these states, or until its record meets a condition, and return the record."""
        end = time.monotonic() + seconds
        while True:
            seen = self.job(job)
            if until(seen) if callable(until) else seen["JobState"] in until:
                return seen
            if seen["JobState"] in FINAL or time.monotonic() > end:
                output = Path(seen["StdOut"])
                text = output.read_text(errors="replace")[-4000:] if output.is_file() else "(none)"
                raise AssertionError(f"{self.run('scontrol', 'show', 'job', job)}\n\nIts output:\n{text}")
            time.sleep(0.3)

    def cut_off(self, node: str) -> None:
        """Simulate a power failure of a node: all its processes are killed. Slurm notices about 25 s later.

        It asks twice and waits for MessageTimeout plus 2 s each time; with `extra="MessageTimeout=5"`, about 18 s.
        """
        cut_power(self._processes.pop(node))

    def give_back(self, node: str) -> None:
        """Restart a node and wait until it accepts jobs."""
        # If a node returned before Slurm had noticed, Slurm would never learn that its steps are gone.
        self._until(f"{node} is down", lambda: self.node(node)["State"].startswith("DOWN"))
        # Slurm tries for 12 s more to kill what ran on it. No real machine restarts so soon: here, it would kill the
        # next start of the job.
        self._until(f"no message to {node} is pending", lambda: self._agents() == 0)
        self._start(node, "-D", "-N", node)
        usable = re.compile(r"(IDLE|MIXED|ALLOCATED)(\+COMPLETING)?")
        self._until(f"{node} is back", lambda: usable.fullmatch(self.node(node)["State"]) is not None)

    def _agents(self) -> int:
        """The number of slurmctld's threads that are sending messages to nodes."""
        return int(re.findall(r"^Agent count:\s*(\d+)$", self.run("sdiag"), re.MULTILINE)[0])

    def _start(self, name: str, *arguments: str) -> None:
        program = "slurmd" if name in self.nodes else name
        environment = {"PATH": SEARCH_PATH, "HOME": "/root", "SLURM_CONF": str(self.configuration)}
        with (self.folder / f"{name}.out").open("ab") as output:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-ISc", ADOPT, program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.folder,
                env=environment,
                start_new_session=True,  # so that Ctrl-C reaches the tests only
            )

    def _until(self, what: str, condition: Callable[[], bool], seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not condition():
            dead = [name for name, process in self._processes.items() if process.poll() is not None]
            if dead or time.monotonic() > end:
                logs = [path for pattern in ("*.out", "*.log") for path in sorted(self.folder.glob(pattern))]
                text = "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in logs)
                raise AssertionError(f"timeout or dead daemon while waiting until {what}; dead: {dead}\n{text}")
            time.sleep(0.2)

    def _show(self, kind: str, name: str) -> dict[str, str]:
        words = self.run("scontrol", "--oneliner", "show", kind, name).split()
        return dict(word.split("=", maxsplit=1) for word in words if "=" in word)
