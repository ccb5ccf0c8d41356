"""What keeps a running cluster from training, looked for on every node: ``cddpm cluster doctor``, and in short before a sweep.

Everything is tried with a deadline, on the nodes themselves, and each fault comes with its remedy.
"""

import hashlib
import importlib.metadata
import os
import platform
import shutil
import socket
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cddpm.cluster import network
from cddpm.cluster.tasks import ask
from cddpm.errors import CddpmError, SearchError
from cddpm.shelf import CACHE, cache_root
from cddpm.storage import Bucket, is_uri

PATIENCE_SECONDS = 60.0
"""For a node to answer: its first process imports Ray."""
MEETING_SECONDS = 15.0
"""For processes that have imported torch to meet and add up."""
CLOCK_SECONDS = 5.0
"""So far may clocks lie apart: times in logs stay in order, and object stores take signatures."""
PAYLOAD_BYTES = 16 * 2**20
PACKAGES = ("ray", "torch")
_LEAST_FREE, _LEAST_SHARE, _LEAST_SHARED_MEMORY = 2 * 2**30, 0.05, 256 * 2**20
"""Bytes; Ray refuses objects on a disk that is more than 95 % full; Docker gives 64 MiB of shared memory."""


@dataclass(frozen=True)
class Check:
    """One thing that was tried: what was found and, if that is a fault, its remedy in a line."""

    what: str
    found: str
    remedy: str = ""

    @property
    def fault(self) -> bool:
        """Whether something must be mended."""
        return bool(self.remedy)


@dataclass(frozen=True)
class Room:
    """Bytes on the disk of a folder."""

    folder: str
    free: int
    total: int


@dataclass(frozen=True)
class Node:
    """What a node says of itself."""

    versions: dict[str, str]
    interface: str | None
    """What trainings would meet over."""
    cache: Room
    temporary: Room
    """Ray's own files."""
    shared_memory: Room


@dataclass(frozen=True)
class Report:
    """All nodes (address: CPUs, GPUs, what it says of itself or None) and all checks."""

    nodes: dict[str, tuple[float, float, Node | None]]
    checks: list[Check]

    @property
    def faults(self) -> list[Check]:
        """Those checks that found one."""
        return [check for check in self.checks if check.fault]


class Storage(Protocol):
    """Where artifacts are kept, as far as a check goes."""

    def write(self, name: str, content: bytes) -> None:
        """Replace an object."""

    def read(self, name: str) -> bytes | None:
        """None, or ``OSError``, if it is not there."""

    def delete(self, name: str) -> None:
        """Raises ``OSError`` if it is not there."""


class Folder:
    """A folder as ``Storage``."""

    def __init__(self, place: str) -> None:
        self._place = Path(place)

    def write(self, name: str, content: bytes) -> None:
        """To the disk: without that only memory would be measured."""
        with (self._place / name).open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())

    def read(self, name: str) -> bytes:
        """Its bytes."""
        return (self._place / name).read_bytes()

    def delete(self, name: str) -> None:
        """Remove the file."""
        (self._place / name).unlink()


def examine(place: str | None) -> Report:
    """Look at everything on the cluster that this process has joined; storage only if a ``place`` is named."""
    resources = _resources()
    answers = ask(_look, {address: (socket_of,) for address, (_, _, socket_of) in resources.items()}, PATIENCE_SECONDS)
    said = {address: answer for address, answer in answers.items() if isinstance(answer, Node)}
    checks = [
        *silent_rows(answers),
        *version_rows({address: node.versions for address, node in said.items()}),
        *clock_rows({address: offset for address in said if (offset := _offset(address))}),
        *(row for address, node in said.items() for row in room_rows(address, node)),
        *meeting_rows(list(said), all(resources[address][1] for address in said)),
        *(storage_rows(place, list(said)) if place else ()),
    ]
    return Report({a: (cpus, gpus, said.get(a)) for a, (cpus, gpus, _) in resources.items()}, checks)


def refuse_unfit(place: str) -> None:
    """In a second: versions, clocks, and ``place`` seen by every node of several. Raises ``SearchError`` listing all faults."""
    addresses = list(_resources())
    if len(addresses) < 2:
        return
    answers = ask(_versions, {address: () for address in addresses}, PATIENCE_SECONDS)
    said = {address: answer for address, answer in answers.items() if isinstance(answer, dict)}
    checks = [
        *silent_rows(answers),
        *version_rows(said),
        *clock_rows({address: offset for address in said if (offset := _offset(address))}),
        *storage_rows(place, list(said), 1024),
    ]
    if faults := [check for check in checks if check.fault]:
        lines = [f"{check.what}: {check.found}; {check.remedy}" for check in faults]
        raise SearchError("\n".join(["the nodes of the cluster do not fit together", *lines]))


def _resources() -> dict[str, tuple[float, float, str]]:
    """CPUs, GPUs and the socket of Ray by address of each living node."""
    import ray

    return {
        node["NodeManagerAddress"]: (
            node["Resources"].get("CPU", 0.0),
            node["Resources"].get("GPU", 0.0),
            node["RayletSocketName"],
        )
        for node in ray.nodes()
        if node["Alive"]
    }


def _look(ray_socket: str) -> Node:
    """Runs on the node."""
    # .../ray/session_.../sockets/raylet
    places = (cache_root(), Path(ray_socket).parents[2], Path("/dev/shm"))
    return Node(_versions(), network.bind(environment={}), *map(_room, places))


def _room(folder: Path) -> Room:
    there = next(place for place in (folder, *folder.parents) if place.exists())
    usage = shutil.disk_usage(there)
    return Room(str(folder), usage.free, usage.total)


def _versions() -> dict[str, str]:
    """Of what must be the same everywhere; this package with a digest of its source, which changes without its version."""
    package = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(str(file.relative_to(package)).encode() + file.read_bytes())
    own = f"{importlib.metadata.version('cddpm')} ({digest.hexdigest()[:8]})"
    return {
        "Python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "cddpm": own,
    }


def silent_rows(answers: Mapping[str, Any]) -> Iterator[Check]:
    """A fault for each node that raised, or did not answer."""
    for address, answer in answers.items():
        if isinstance(answer, BaseException):
            missing = isinstance(answer, ImportError)
            yield Check(
                f"node {address}",
                _one_line(answer),
                "install the packages of requirements.lock there, and this project (pip install --no-deps -e .)"
                if missing
                else "open all TCP ports between it and this one, look into Ray's logs there, or end its Ray",
            )


def version_rows(versions: Mapping[str, Mapping[str, str]]) -> Iterator[Check]:
    """A fault for each package of which nodes have different versions; one row if all are the same."""
    names = list(dict.fromkeys(name for found in versions.values() for name in found))
    same = []
    for name in names:
        by_version: dict[str, list[str]] = {}
        for address, found in versions.items():
            by_version.setdefault(found.get(name, "missing"), []).append(address)
        if len(by_version) > 1:
            apart = "; ".join(f"{version} on {_some(where)}" for version, where in by_version.items())
            yield Check(name, apart, "install the same on all nodes (requirements.lock), then start Ray there again")
        else:
            same.append(f"{name} {next(iter(by_version))}")
    if same:
        yield Check("versions", ", ".join(same))


def clock_rows(offsets: Mapping[str, tuple[float, float]]) -> Iterator[Check]:
    """A fault for each node whose clock is surely more than ``CLOCK_SECONDS`` from this one's, of (difference, uncertainty)."""
    if not offsets:
        return
    for address, (offset, unsure) in offsets.items():
        if abs(offset) - unsure > CLOCK_SECONDS:
            way = "ahead of" if offset > 0 else "behind"
            yield Check(
                f"clock of {address}", f"{abs(offset):.1f} s {way} this one's", "set it by NTP (chrony) on all nodes"
            )
    largest = max(abs(offset) + unsure for offset, unsure in offsets.values())
    if all(abs(offset) - unsure <= CLOCK_SECONDS for offset, unsure in offsets.values()):
        yield Check("clocks", f"at most {largest:.2f} s apart")


def _offset(address: str) -> tuple[float, float] | None:
    """(difference, uncertainty) of a node's clock, in seconds; None if it does not answer now."""
    before, start = time.time(), time.monotonic()
    there = ask(time.time, {address: ()}, PATIENCE_SECONDS)[address]
    half = (time.monotonic() - start) / 2
    return None if isinstance(there, BaseException) else (there - before - half, half)


def room_rows(address: str, node: Node) -> Iterator[Check]:
    """A fault for each disk of a node that has too little room."""
    for what, room in (("cache", node.cache), ("Ray's files", node.temporary)):
        if room.free < _LEAST_FREE or room.free < _LEAST_SHARE * room.total:
            found = f"{_size(room.free)} of {_size(room.total)} free for the {what} in {room.folder}"
            way = "ray start --temp-dir" if room is node.temporary else CACHE
            yield Check(f"disk of {address}", found, f"free space there, or name another disk ({way})")
    room = node.shared_memory
    if room.total < _LEAST_SHARED_MEMORY:
        found = f"{room.folder} has {_size(room.total)}, Ray needs {_size(_LEAST_SHARED_MEMORY)}"
        yield Check(f"memory of {address}", found, "docker run --shm-size=12g, or mount -o remount,size=12g /dev/shm")


def meeting_rows(addresses: Sequence[str], cuda: bool = False) -> Iterator[Check]:
    """All-reduce over all nodes; where that fails, between each pair, and a fault for each that fails."""
    backend = "nccl" if cuda else "gloo"
    if len(addresses) < 2:
        return
    whole = _meet_up([tuple(addresses)], backend)[tuple(addresses)]
    if not isinstance(whole, str):
        yield Check(f"all-reduce ({backend})", f"{len(addresses)} nodes, {whole * 1000:.0f} ms for 1 MiB")
        return
    pairs: dict[tuple[str, ...], str | float] = {}
    if len(addresses) == 2:
        pairs[tuple(addresses)] = whole
    else:
        for round_of_pairs in rounds(addresses):
            pairs.update(_meet_up(round_of_pairs, backend))
    broken = {pair: reason for pair, reason in pairs.items() if isinstance(reason, str)}
    for pair, reason in (broken or {tuple(addresses): whole}).items():
        yield Check(
            f"all-reduce ({backend})",
            f"fails between {' and '.join(pair)} ({reason})",
            "open all TCP ports between them (firewall, security group), or name an interface that they share: "
            f"{'NCCL' if cuda else 'GLOO'}_SOCKET_IFNAME",
        )


def rounds(addresses: Sequence[str]) -> Iterator[list[tuple[str, ...]]]:
    """Every pair once, in rounds in which nobody is in two pairs (the circle method of tournaments)."""
    ring: list[str | None] = [*addresses, *([None] if len(addresses) % 2 else [])]
    for _ in range(len(ring) - 1):
        half = len(ring) // 2
        found = zip(ring[:half], reversed(ring[half:]), strict=True)
        yield [(one, other) for one, other in found if one is not None and other is not None]
        ring.insert(1, ring.pop())


def _meet_up(groups: Iterable[tuple[str, ...]], backend: str) -> dict[tuple[str, ...], str | float]:
    """Seconds of an all-reduce in each group of addresses, none in two groups; why it failed where it did."""
    groups = list(groups)
    ports = ask(_free_port, {group[0]: () for group in groups}, PATIENCE_SECONDS)
    asked = {
        address: (rank, len(group), group[0], ports[group[0]], backend)
        for group in groups
        for rank, address in enumerate(group)
        if isinstance(ports[group[0]], int)
    }
    answers: dict[str, float | BaseException] = {**ports, **ask(_meet, asked, PATIENCE_SECONDS + MEETING_SECONDS)}
    found: dict[tuple[str, ...], str | float] = {}
    for group in groups:
        seconds = [answer for address in group if not isinstance(answer := answers[address], BaseException)]
        reasons = [_one_line(answer) for address in group if isinstance(answer := answers[address], BaseException)]
        found[group] = reasons[0] if reasons else max(seconds)
    return found


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])


def _meet(rank: int, count: int, first: str, port: int, backend: str) -> float:
    """Runs on each node of a group: seconds that adding up 1 MiB took. Raises what torch raises."""
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    network.bind()
    device = torch.device("cuda" if backend == "nccl" else "cpu")
    # who is first to have imported torch waits for the others
    store = dist.TCPStore(first, port, count, rank == 0, timedelta(seconds=PATIENCE_SECONDS), wait_for_workers=True)
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=count, timeout=timedelta(seconds=MEETING_SECONDS)
    )
    try:
        values = torch.full((2**18,), rank + 1.0, device=device)
        start = time.monotonic()
        dist.all_reduce(values)
        found, seconds = float(values[-1]), time.monotonic() - start
    finally:
        dist.destroy_process_group()
    if found != count * (count + 1) / 2:
        raise SearchError(f"the sum is {found:g} instead of {count * (count + 1) / 2:g}")
    return seconds


def storage_rows(place: str, addresses: Iterable[str], size: int = PAYLOAD_BYTES) -> Iterator[Check]:
    """Whether every node reads what we write to ``place``, and writes there itself; with the usual ``size`` also how fast."""
    name, content = f".doctor-{uuid.uuid4().hex[:8]}", os.urandom(size)
    try:
        storage = connect(place)
        storage.write(name, content)
    except (OSError, CddpmError) as error:
        yield Check(
            "storage", f"{place}: {_one_line(error)}", "name a folder or bucket that exists and that we may write to"
        )
        return
    try:
        answers = ask(_try_storage, {address: (place, name) for address in addresses}, PATIENCE_SECONDS + size / 2**18)
    finally:
        storage.delete(name)
    for address, answer in answers.items():
        if isinstance(answer, BaseException):
            unseen = isinstance(answer, FileNotFoundError)
            yield Check(
                f"storage from {address}",
                f"{place} is not the same folder there" if unseen else _one_line(answer),
                "mount it there (NFS, say), or name one that all nodes see"
                if unseen
                else "give the nodes the right to it",
            )
        elif size == PAYLOAD_BYTES:
            written, read = (size / 2**20 / max(1e-6, seconds) for seconds in answer)
            yield Check(f"storage from {address}", f"writes {written:,.0f} MiB/s, reads {read:,.0f} MiB/s")


def connect(place: str) -> Storage:
    """The storage at ``place``, a folder or a URI."""
    return Bucket(place, patience_seconds=5.0) if is_uri(place) else Folder(place)


def _try_storage(place: str, name: str) -> tuple[float, float]:
    """Runs on the node: seconds of writing, and of reading what another wrote."""
    storage, mine = connect(place), f"{name}-{uuid.uuid4().hex[:8]}"
    start = time.monotonic()
    content = storage.read(name)
    if content is None:
        raise FileNotFoundError(f"{place}/{name}")
    read = time.monotonic()
    storage.write(mine, content)
    written = time.monotonic()
    storage.delete(mine)
    return written - read, read - start


def _some(addresses: Sequence[str], most: int = 3) -> str:
    more = len(addresses) - most
    return ", ".join(addresses[:most]) + (f" and {more} more" if more > 0 else "")


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
