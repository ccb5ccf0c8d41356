"""What Ray may use of one node of a SLURM job: ports, CPUs, GPUs, memory, a temporary folder, an address.

Ray by itself takes the whole host, random ports and ``/tmp/ray``, which on a shared node belong to others too.
"""

import contextlib
import os
import re
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from cddpm.cluster import door
from cddpm.errors import SearchError, StorageError
from cddpm.host import writable

FIRST_PORT, BLOCK, BLOCKS = 12_000, 400, 50
"""12000 to 31999: below what Linux gives to outgoing connections by default, above what services use."""
_FIXED = (
    "port",
    "node-manager-port",
    "object-manager-port",
    "dashboard-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "metrics-export-port",
    "ray-client-server-port",
)
_OF_THE_HEAD = ("port", "dashboard-port", "ray-client-server-port")
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_MIB = 2**20


@dataclass(frozen=True)
class Ports:
    """A block of ports, of which the first is nobody's: who listens there has claimed the block."""

    first: int

    @property
    def head(self) -> int:
        """Where other nodes and drivers find the head."""
        return self.first + 1

    def options(self, head: bool) -> list[str]:
        """Every port that ``ray start`` would otherwise choose at random, or take from its defaults."""
        named = {name: self.first + 1 + number for number, name in enumerate(_FIXED)}
        kept = [f"--{name}={port}" for name, port in named.items() if head or name not in _OF_THE_HEAD]
        return [
            *kept,
            f"--min-worker-port={self.first + 1 + len(_FIXED)}",
            f"--max-worker-port={self.first + BLOCK - 1}",
        ]


def blocks(job: int, ephemeral: tuple[int, int]) -> list[Ports]:
    """All blocks, that of the job's number first; those in the kernel's ``ephemeral`` range (low, high) last."""
    turned = [Ports(FIRST_PORT + BLOCK * ((job + number) % BLOCKS)) for number in range(BLOCKS)]
    low, high = ephemeral
    return sorted(turned, key=lambda ports: ports.first <= high and low < ports.first + BLOCK)  # keeps the order else


def ephemeral_range() -> tuple[int, int]:
    """Lowest and highest port that the kernel gives to outgoing connections."""
    try:
        low, high = map(int, _EPHEMERAL.read_text().split())
    except (OSError, ValueError):
        return 32_768, 60_999
    return low, high


@contextlib.contextmanager
def claimed(candidates: Iterable[Ports]) -> Iterator[Ports]:
    """The first of ``candidates`` that is free, ours until the block ends.

    To listen on its first port is the claim: the kernel lets one process do so, whoever starts at the same second. Raises
    ``SearchError`` that names the ports in the way if none is free.
    """
    taken: list[int] = []
    for ports in candidates:
        with socket.socket() as claim:
            port = _in_the_way(claim, ports)
            if port is None:
                yield ports
                return
        taken.append(port)
    raise SearchError(
        f"ports on node {name()}: each block of {BLOCK} has one that is taken ({', '.join(map(str, taken))}); end what listens "
        f"there (ss -tlnp), or keep off this node: slurm.extra: [--exclude={name()}]"
    )


def _in_the_way(claim: socket.socket, ports: Ports) -> int | None:
    if not _listens(claim, ports.first):
        return ports.first
    for port in range(ports.first + 1, ports.first + BLOCK):
        with socket.socket() as probe:
            if not _listens(probe, port):
                return port
    return None


def _listens(sock: socket.socket, port: int) -> bool:
    sock.setsockopt(
        socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
    )  # connections of a run before that still fade away do not count
    try:
        sock.bind(("", port))
        sock.listen(1)
    except OSError:
        return False
    return True


def name(environment: Mapping[str, str] = os.environ) -> str:
    """What SLURM calls this node."""
    return environment.get("SLURMD_NODENAME") or os.uname().nodename


def cpus(environment: Mapping[str, str], usable: int) -> int:
    """CPUs of this node that are the job's; at most those that this process may run on (``usable``)."""
    given = environment.get("SLURM_CPUS_PER_TASK") or environment.get("SLURM_CPUS_ON_NODE")
    return min(int(given), usable) if given else usable


def gpus(environment: Mapping[str, str]) -> int:
    """GPUs of this node that are the job's: those that SLURM lets it see; none where it says nothing."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([one for one in visible.split(",") if re.fullmatch(r"\d+|(GPU|MIG)-.+", one.strip())])
    return int(environment.get("SLURM_GPUS_ON_NODE") or 0)


def memory(environment: Mapping[str, str], cpus: int, gpus: int) -> int | None:
    """Bytes of this node that are the job's, None where SLURM sets no limit."""
    each = {"SLURM_MEM_PER_NODE": 1, "SLURM_MEM_PER_CPU": cpus, "SLURM_MEM_PER_GPU": gpus}
    found = [int(environment[name]) * count for name, count in each.items() if environment.get(name)]
    return found[0] * _MIB if found and found[0] else None


def folder(
    environment: Mapping[str, str] = os.environ, places: tuple[str, ...] = ("/tmp", "/var/tmp", "/dev/shm")
) -> Path:
    """A new folder for Ray's sockets and logs: of this user and job alone, local, writable, short; on each node its own.

    What a run of the same job left there is removed. Raises ``StorageError`` that says of each place why it is none.
    """
    mine = f"ray-{os.getuid()}-{environment['SLURM_JOB_ID']}"
    if node := int(environment.get("SLURM_NODEID") or 0):
        mine += f"-{node}"
    named = [place for place in (environment.get("TMPDIR"),) if place]
    reasons = []
    for place in dict.fromkeys([*named, *places]):
        reason = unfit(Path(place), Path(place, mine))
        if reason is None:
            made = Path(place, mine)
            if made.exists():
                shutil.rmtree(made)
            made.mkdir(mode=0o700)
            return made
        reasons.append(f"{place}: {reason}")
    raise StorageError(
        f"no temporary folder for Ray on node {name()} ({'; '.join(reasons)}); name a short one on a local disk: "
        "slurm.before: export TMPDIR=..."
    )


def unfit(place: Path, within: Path) -> str | None:
    """Why Ray's folder ``within`` a ``place`` cannot be; None if it can."""
    if len(os.fsencode(within)) > door.LONGEST_FOLDER:
        return f"too long for Ray's sockets (at most {door.LONGEST_FOLDER - len(within.name) - 1} bytes)"
    if not place.is_dir() or not writable(place):
        return "cannot be written"
    if os.path.lexists(within) and within.lstat().st_uid != os.getuid():
        return f"{within.name} there is another user's"
    kind = file_system(place)
    return f"a shared file system ({kind}), on which sockets do not work" if shared(kind) else None


def file_system(place: Path) -> str:
    """Kind of the file system that holds ``place``, as the kernel names it."""
    found = max(
        (mount for mount in psutil.disk_partitions(all=True) if place.resolve().is_relative_to(mount.mountpoint)),
        key=lambda mount: len(mount.mountpoint),
        default=None,
    )
    return found.fstype if found else ""


def shared(kind: str) -> bool:
    """Whether a file system of this kind lies on other machines."""
    return kind in _SHARED or (kind.startswith("fuse.") and kind != "fuse.fuse-overlayfs")


_SHARED = frozenset(
    (
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "glusterfs",
        "gpfs",
        "lustre",
        "nfs",
        "nfs4",
        "panfs",
        "pvfs2",
        "smb3",
        "wekafs",
    )
)


def address(environment: Mapping[str, str], interface: str | None, head: str | None = None) -> str:
    """Address of this node on ``interface``; else that on the way to the ``head``, or for the head that by which SLURM calls it.

    Raises ``SearchError`` naming the interfaces that there are.
    """
    found = {
        nic: [one.address for one in addresses if one.family == socket.AF_INET]
        for nic, addresses in psutil.net_if_addrs().items()
    }
    if interface:
        if not found.get(interface):
            known = ", ".join(nic for nic, addresses in sorted(found.items()) if addresses)
            raise SearchError(f"slurm.interface: '{interface}' has no IPv4 address on node {name()}; it has {known}")
        return found[interface][0]
    told = environment.get("SLURM_LAUNCH_NODE_IPADDR")  # of the node of the job's script, which is the head
    if head is None and told and any(told in addresses for addresses in found.values()):
        return told
    return _towards(head or "192.0.2.1")


def _towards(other: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        try:
            way.connect((other, 1))  # nothing is sent
        except OSError:
            return "127.0.0.1"  # a machine without a network
        return str(way.getsockname()[0])


def interface_of(address: str) -> str | None:
    """The interface that has an address."""
    return next(
        (nic for nic, found in psutil.net_if_addrs().items() if address in {one.address for one in found}), None
    )
