"""A SLURM of two nodes on this machine: its own key, configuration and daemons in a temporary folder, ended by their numbers."""

import contextlib
import getpass
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from launched import of_nobody

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
NODES = ("n1", "n2")
PORT = 33_817  # outside of the ports of Ray's blocks
CONFIGURATION = """
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=2,batch_sched_delay=0
SlurmdParameters=config_overrides
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=10
"""


class Slurm:
    """``environment`` is what its commands need."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**of_nobody(), "SLURM_CONF": str(folder / "slurm.conf")}

    def ask(self, *command: str) -> str:
        """What a command of SLURM prints."""
        return subprocess.run(command, env=self.environment, check=True, capture_output=True, text=True).stdout.strip()

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED, FAILED ..."""
        return self.ask("scontrol", "show", "job", "-o", job).partition("JobState=")[2].split()[0]

    def wait(self, job: str, *states: str, log: Path, seconds: float = 600) -> str:
        """Wait until a job is in one of ``states``."""
        end = time.monotonic() + seconds
        while (state := self.state(job)) not in states:
            said = log.read_text() if log.exists() else ""
            assert state in ("PENDING", "RUNNING", "COMPLETING"), f"{state}\n{said}"
            assert time.monotonic() < end, f"{state} after {seconds} s\n{said}"
            time.sleep(1)
        return state


@contextlib.contextmanager
def started() -> Iterator[Slurm]:
    """The cluster until the block ends."""
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as name, contextlib.ExitStack() as stack:
        folder = Path(name)  # short, for the sockets in it
        slurm = Slurm(folder)
        (folder / "state").mkdir()
        (folder / "munge.key").write_bytes(secrets.token_bytes(128))
        (folder / "munge.key").chmod(0o400)
        lines = CONFIGURATION.format(host=os.uname().nodename, port=PORT, user=getpass.getuser(), folder=folder)
        for number, node in enumerate(NODES, 1):
            (folder / f"spool-{node}").mkdir()
            where = f"NodeHostname={os.uname().nodename} NodeAddr=127.0.0.1 Port={PORT + number}"
            lines += f"NodeName={node} {where} CPUs=2 RealMemory=8000\n"
        lines += "PartitionName=short Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverTimeLimit=0\n"
        (folder / "slurm.conf").write_text(lines)
        kept = [f"--{what}={folder}/munge.{end}" for what, end in (("key-file", "key"), ("socket", "socket"))]
        kept += [f"--{what}-file={folder}/munge.{what}" for what in ("log", "pid", "seed")]
        for log, daemon in enumerate(
            (
                ["munged", "--foreground", "--force", *kept],
                ["slurmctld", "-D", "-c"],
                *(["slurmd", "-D", "-N", node] for node in NODES),
            )
        ):
            stack.enter_context(_daemon(daemon, slurm, folder / f"{log}-{daemon[0]}.log"))
        _await_nodes(slurm)
        yield slurm


@contextlib.contextmanager
def _daemon(command: list[str], slurm: Slurm, log: Path) -> Iterator[None]:
    program = shutil.which(command[0], path=_PATH) or command[0]
    with log.open("wb") as out:
        process = subprocess.Popen([program, *command[1:]], env=slurm.environment, stdout=out, stderr=out)
    try:
        if command[0] == "munged":
            end = time.monotonic() + 20
            while not (slurm.folder / "munge.socket").exists():
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.1)
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_nodes(slurm: Slurm) -> None:
    end = time.monotonic() + 60
    while True:
        done = subprocess.run(
            ["sinfo", "-h", "-o", "%D %t"], env=slurm.environment, capture_output=True, text=True, check=False
        )
        if done.stdout.split() == ["2", "idle"]:
            return
        logs = "\n".join(log.read_text() for log in slurm.folder.glob("*.log"))
        assert time.monotonic() < end, f"{done.stdout}{done.stderr}\n{logs}"
        time.sleep(0.5)


_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


@pytest.fixture(scope="module")
def slurm_here() -> Iterator[Slurm]:
    """A SLURM for the tests of a module; a skip where its programs are missing."""
    missing = [program for program in NEEDED if not shutil.which(program, path=_PATH)]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed (Debian: apt install slurm-wlm munge)")
    with started() as slurm:
        yield slurm
