"""The step of a SLURM job: Ray on each of its nodes, a command on the first of them, and the end of both.

``run`` is started once on every node by ``srun``. The first is Ray's head: it waits until all have joined, runs the command and
passes on a request to stop. The others hold a worker node until the head has gone.

Why not ``ray symmetric-run``: it ends with ``ray stop``, which ends every Ray of the user on the host; it does not start where
any other Ray runs; it knows no request to save, no ports but one, and waits half a minute for whom it does not name.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from cddpm import artifact
from cddpm.cluster import internals, node
from cddpm.cluster.session import HEAD, HEAD_SLOTS, OBJECT_STORE_BYTES
from cddpm.errors import SearchError, StoppedError
from cddpm.text.numbers import counted

TRIES = 3
"""Starts of Ray on a node: somebody else may have taken a port since it was looked at."""
POLL_SECONDS = 1.0
BEFORE_LIMIT_SECONDS = 60
"""What has not saved so long before the job's limit is ended, so that the job can still be queued again; SLURM counts whole
minutes. At least half of the time to save is left."""
CACHE = "CDDPM_CACHE"
"""Names the folder on each node's own disk for what is fetched once."""
NODES = "CDDPM_NODES"
"""Names of all nodes; only the job's script can ask SLURM for them, for in a container there is no ``scontrol``."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Terms:
    """``meeting``: a folder that all nodes see, in which the head says where it is."""

    meeting: Path
    join_seconds: float
    save_seconds: float
    interface: str | None = None


def run(command: Sequence[str], terms: Terms, say: Say) -> int:
    """Ray on this node, and on the first one ``command``, whose exit code this is; a worker's is 0.

    Raises ``SearchError`` outside of a job, when a node is missing after ``join_seconds``, or when Ray does not start;
    ``StorageError`` where its files find no place.
    """
    if "SLURM_JOB_ID" not in os.environ:
        raise SearchError("not within a SLURM job (SLURM_JOB_ID is not set); sbatch starts this by its script")
    is_head, request = int(os.environ.get("SLURM_NODEID") or 0) == 0, Request(_meeting(terms, "stop"))
    try:
        with request.heard(), _surroundings() as folder:
            if is_head:
                return _head(command, terms, folder, request, say)
            _worker(terms, folder, request, say)
            return 0
    finally:
        if is_head:
            artifact.write_json(_meeting(terms, "head.json"), {"address": ""})  # who still waits for the head need not


class Request:
    """A request to stop: a file of the job's script before the time limit, or SIGTERM when SLURM cancels the step.

    SLURM sends a signal to all processes of a step, Ray's included: what is to be saved in peace is asked for by the file.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._cancelled = False
        self._asked: float | None = None

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Listen to SIGTERM until the block ends."""

        def hear(number: int, frame: FrameType | None) -> None:
            self._cancelled = True

        before = signal.signal(signal.SIGTERM, hear)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    @property
    def cancelled(self) -> bool:
        """Whether SLURM ends the step."""
        return self._cancelled

    @property
    def asked(self) -> bool:
        """Whether anybody asked."""
        if self._asked is None and self._file.exists():
            self._asked = time.monotonic()
        return self._cancelled or self._asked is not None

    def overdue(self, save_seconds: float) -> bool:
        """Whether the limit comes too near to wait for those that still save."""
        late = max(save_seconds / 2, save_seconds - BEFORE_LIMIT_SECONDS)
        return self._asked is not None and time.monotonic() - self._asked > late


@contextlib.contextmanager
def _surroundings() -> Iterator[Path]:
    """The node's temporary folder, and what Ray's processes are told through their environment."""
    folder = node.folder()
    told = {
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_grpc_client_keepalive_timeout_ms": "10000",  # a connection to a lost node ends soon
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # all has been saved before a node is ended
        # it looks at the whole host's memory, of which the neighbours' part is none of ours; SLURM guards the job's
        "RAY_memory_monitor_refresh_ms": "0",
        "OMP_NUM_THREADS": "1",  # of what a profile set for the whole job; a worker then takes compute.threads_per_worker
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }
    os.environ.update(told)
    os.environ.setdefault(CACHE, str(_cache(folder)))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _cache(folder: Path) -> Path:
    for variable in ("SLURM_TMPDIR", "TMPDIR"):
        place = Path(os.environ.get(variable) or "/nowhere")
        if place.is_dir() and os.access(place, os.W_OK) and not node.shared(node.file_system(place)):
            return place
    return folder / "cache"


def _meeting(terms: Terms, what: str) -> Path:
    """A file of this run of the job, and of no run before it."""
    name, _, end = what.partition(".")
    run = f"{os.environ['SLURM_JOB_ID']}-{os.environ.get('SLURM_RESTART_COUNT') or 0}"
    return terms.meeting / f".{name}-{run}{end and f'.{end}'}"


def _head(command: Sequence[str], terms: Terms, folder: Path, request: Request, say: Say) -> int:
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else it is the job's, which all nodes know
    own = node.address(os.environ, terms.interface)
    for number in range(TRIES):
        with _ray(folder, own, None, say) as ray:
            if not ray.begins(terms.join_seconds):
                say(f"Ray's head did not start ({ray.last_words()}){_then(number)}")
                continue
            artifact.write_json(_meeting(terms, "head.json"), {"address": ray.address})
            _await_nodes(ray, terms.join_seconds, request, say)
            return _command(command, ray.address, terms, request, say)
    raise SearchError(f"Ray's head did not start on node {node.name()} in {TRIES} tries; what it said stands above")


def _then(number: int) -> str:
    return "; it is tried again with other ports" if number + 1 < TRIES else ""


def _worker(terms: Terms, folder: Path, request: Request, say: Say) -> None:
    """Hold a worker node until the head has gone; one that dies is started again."""
    head = _await_head(terms, request)
    if head is None:
        return
    own = node.address(os.environ, terms.interface, head.rpartition(":")[0])
    for number in range(TRIES):
        with _ray(folder, own, head, say) as ray:
            while ray.alive() and not request.cancelled and reached(head):
                time.sleep(POLL_SECONDS)
            if request.cancelled or not reached(head):
                return
            say(f"Ray's worker node ended ({ray.last_words()}){_then(number)}")
    raise SearchError(f"Ray did not run on node {node.name()} in {TRIES} tries; what it said stands above")


def reached(address: str) -> bool:
    """Whether somebody listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError:
        return False
    return True


def _await_head(terms: Terms, request: Request) -> str | None:
    """Address of the head, once it is there; None if it, or this step, ends. Raises ``SearchError`` after ``join_seconds``."""
    end, place = time.monotonic() + terms.join_seconds, _meeting(terms, "head.json")
    while time.monotonic() < end:
        if request.cancelled:
            return None
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            address = str(json.loads(place.read_text())["address"])
            if not address or reached(address):
                return address or None
        time.sleep(POLL_SECONDS)
    first = (os.environ.get(NODES) or "the first node").split()[0]
    raise SearchError(
        f"node {node.name()}: the head ({first}) did not answer within {terms.join_seconds:g} s ({place}); see what it says "
        "in this log, or give it longer (slurm.join_seconds)"
    )


def _await_nodes(ray: "_Ray", seconds: float, request: Request, say: Say) -> None:
    """Until all nodes of the job have joined. Raises ``SearchError`` that names those that did not."""
    wanted = set((os.environ.get(NODES) or node.name()).split())
    begin, told = time.monotonic(), False
    while missing := sorted(wanted - internals.joined(ray.address)):
        passed = time.monotonic() - begin
        if not ray.alive():
            raise SearchError(f"Ray's head ended on node {node.name()} ({ray.last_words()})")
        if request.asked:
            raise StoppedError(f"stopped while Ray waited for {', '.join(missing)}; nothing was begun")
        if passed > seconds:
            raise SearchError(
                f"Ray waited {seconds:g} s for {', '.join(missing)}: not joined; see what they say in this log, give them "
                f"longer (slurm.join_seconds), or do without: slurm.extra: [--exclude={','.join(missing)}]"
            )
        if not told and passed > 10:
            told = True
            say(f"waiting for {', '.join(missing)} ...")
        time.sleep(POLL_SECONDS)
    booked = " and ".join(counted(amount, name) for name, amount in ray.resources.items())
    say(f"Ray at {ray.address}: {counted(len(wanted), 'node')} with {booked} each")


def _command(command: Sequence[str], address: str, terms: Terms, request: Request, say: Say) -> int:
    """Run ``command`` on the Ray at ``address``; a request to stop becomes one SIGTERM. Returns its exit code.

    When SLURM cancels the step it has sent SIGTERM to the command itself; a second one would end it at once.
    """
    process = subprocess.Popen(command, env={**os.environ, "RAY_ADDRESS": address}, start_new_session=True)
    passed_on = False
    while process.poll() is None:
        if request.asked and not request.cancelled and not passed_on:
            passed_on = True
            process.terminate()
        if request.overdue(terms.save_seconds):
            say("the time limit is near: what has not been saved yet starts again from its last checkpoint")
            _end(process)
            return StoppedError.exit_code
        time.sleep(POLL_SECONDS / 2)
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


class _Ray:
    """``ray start --block`` on this node."""

    def __init__(
        self, process: "subprocess.Popen[bytes]", address: str, log: Path, resources: Mapping[str, int]
    ) -> None:
        self._process, self.address, self._log, self.resources = process, address, log, resources

    def alive(self) -> bool:
        return self._process.poll() is None

    def begins(self, seconds: float) -> bool:
        """Whether the head has joined itself before ``seconds`` have passed, or it dies."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.alive():
            if reached(self.address) and node.name() in internals.joined(self.address):
                return True
            time.sleep(POLL_SECONDS)
        return False

    def last_words(self) -> str:
        """The last line that it printed."""
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip() if lines else "it said nothing"


@contextlib.contextmanager
def _ray(folder: Path, own: str, head: str | None, say: Say) -> Iterator[_Ray]:
    """Ray's processes of this node, as the head or as a worker of ``head``; the block's end is theirs."""
    candidates = node.blocks(int(os.environ["SLURM_JOB_ID"]), node.ephemeral_range())
    with node.claimed(candidates) as ports:
        booked, options = _options(ports, folder, own, head)
        if ports != candidates[0]:
            say(f"Ray's ports begin at {ports.first}, for of those from {candidates[0].first} on one is taken")
        log = folder / "start.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", "start", *options],
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=_by_interface(own),
                start_new_session=True,  # a signal to the step is not one to Ray: trainings save on it
            )
        try:
            yield _Ray(process, head or f"{own}:{ports.head}", log, booked)
        finally:
            _end(process)


def _options(ports: node.Ports, folder: Path, own: str, head: str | None) -> tuple[dict[str, int], list[str]]:
    """What of this node is booked, by Ray's names, and the options of ``ray start``."""
    usable = len(os.sched_getaffinity(0))
    booked = {"CPU": node.cpus(os.environ, usable), "GPU": node.gpus(os.environ)}
    memory = node.memory(os.environ, booked["CPU"], booked["GPU"])
    role = ["--head", "--dashboard-host=127.0.0.1"] if head is None else [f"--address={head}"]
    given = {"resources": json.dumps({HEAD: HEAD_SLOTS})} if head is None else {}
    given |= {"memory": str(max(memory - OBJECT_STORE_BYTES, OBJECT_STORE_BYTES))} if memory else {}
    return booked, [
        *role,
        "--block",
        "--disable-usage-stats",
        "--log-style=record",
        f"--node-ip-address={own}",
        f"--node-name={node.name()}",
        f"--num-cpus={booked['CPU']}",
        f"--num-gpus={booked['GPU']}",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        f"--temp-dir={folder}",
        *(f"--{name}={value}" for name, value in given.items()),
        *ports.options(head is None),
    ]


def _by_interface(own: str) -> dict[str, str]:
    """gloo and NCCL of trainings by the interface that Ray uses, not by what the host's name resolves to (often loopback)."""
    found = None if own.startswith("127.") else node.interface_of(own)  # for loopback Ray takes another
    chosen = {name: found for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if found}
    return {**chosen, **os.environ}


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a process and its group, which are all that it has started, and nothing else."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.terminate()
        process.wait(10)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # it leads the group, which lives as long as one of its processes
    process.wait()
