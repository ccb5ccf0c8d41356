"""What a node of a SLURM job is to Ray: ports of its own, the job's share of CPUs, GPUs and memory, a folder, an address."""

import contextlib
import os
import socket
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cddpm.cluster import door, node
from cddpm.errors import SearchError, StorageError

JOBS = st.integers(1, 2**31 - 1)
USUAL = (32_768, 60_999)


@given(JOBS, st.booleans())
def test_every_port_is_named_once_and_lies_in_its_block(job: int, head: bool) -> None:
    ports = node.blocks(job, USUAL)[0]
    options = dict(option.removeprefix("--").split("=") for option in ports.options(head))
    low, high = int(options.pop("min-worker-port")), int(options.pop("max-worker-port"))
    fixed = sorted(map(int, options.values()))
    assert len(set(fixed)) == len(fixed)
    assert ports.first < fixed[0] <= fixed[-1] < low < high < ports.first + node.BLOCK
    assert high < USUAL[0]
    assert high - low > 300  # 256 CPUs, and drivers of trials
    assert ("port" in options) == head
    if head:
        assert int(options["port"]) == ports.head


@given(JOBS, st.tuples(st.integers(1024, 65_535), st.integers(1024, 65_535)).map(lambda pair: (min(pair), max(pair))))
def test_each_job_may_take_any_block_and_those_of_outgoing_connections_come_last(
    job: int, given: tuple[int, int]
) -> None:
    found = node.blocks(job, given)
    assert sorted(ports.first for ports in found) == [12_000 + 400 * number for number in range(50)]
    meets = [ports.first <= given[1] and given[0] <= ports.first + 399 for ports in found]
    assert meets == sorted(meets)


def test_jobs_in_a_row_begin_in_blocks_of_their_own() -> None:
    assert len({node.blocks(job, USUAL)[0] for job in range(1000, 1050)}) == 50


@contextlib.contextmanager
def listening(port: int) -> object:
    with socket.create_server(("127.0.0.1", port)):
        yield


def test_a_taken_port_anywhere_in_a_block_gives_way_to_the_next() -> None:
    candidates = node.blocks(4711, USUAL)
    for offset in (0, 1, 9, 10, 399):
        with listening(candidates[0].first + offset), node.claimed(candidates) as ports:
            assert ports == candidates[1]
    with node.claimed(candidates) as ports:
        assert ports == candidates[0]


def test_of_many_that_begin_at_the_same_second_each_has_its_own() -> None:
    """Twenty rounds of three with one job number: the kernel lets one listen, whoever looks when."""
    for _ in range(20):
        found, start, over = list[node.Ports](), threading.Barrier(3), threading.Barrier(3)

        def take(found: list[node.Ports], start: threading.Barrier, over: threading.Barrier) -> None:
            start.wait()
            with node.claimed(node.blocks(77, USUAL)) as ports:
                found.append(ports)
                over.wait()

        threads = [threading.Thread(target=take, args=(found, start, over)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(found)) == 3


def test_without_a_free_block_the_ports_in_the_way_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "gpu07")
    candidates = node.blocks(5, USUAL)[:2]
    with (
        listening(candidates[0].first + 7),
        listening(candidates[1].first),
        pytest.raises(SearchError) as caught,
        node.claimed(candidates),
    ):
        raise AssertionError("claimed")
    text = str(caught.value)
    assert text.startswith("ports on node gpu07: ")
    assert f"({candidates[0].first + 7}, {candidates[1].first})" in text
    assert "slurm.extra: [--exclude=gpu07]" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"SLURM_CPUS_PER_TASK": "16", "SLURM_CPUS_ON_NODE": "128"}, 16),
        ({"SLURM_CPUS_ON_NODE": "8"}, 8),
        ({"SLURM_CPUS_PER_TASK": "96"}, 64),  # bound to fewer than were given
        ({}, 64),
    ],
)
def test_cpus_are_the_jobs(environment: dict[str, str], expected: int) -> None:
    assert node.cpus(environment, usable=64) == expected


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0", "SLURM_GPUS_ON_NODE": "8"}, 1),
        ({"CUDA_VISIBLE_DEVICES": "0,1,5"}, 3),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8f1c,MIG-2a-0"}, 2),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, 0),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0),
        ({"SLURM_GPUS_ON_NODE": "4"}, 4),
        ({}, 0),
    ],
)
def test_gpus_are_those_that_slurm_shows(environment: dict[str, str], expected: int) -> None:
    assert node.gpus(environment) == expected


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"SLURM_MEM_PER_NODE": "4096"}, 4096 * 2**20),
        ({"SLURM_MEM_PER_CPU": "2000"}, 8 * 2000 * 2**20),
        ({"SLURM_MEM_PER_GPU": "100"}, 200 * 2**20),
        ({"SLURM_MEM_PER_NODE": "0"}, None),  # all of it
        ({}, None),
    ],
)
def test_memory_is_the_jobs(environment: dict[str, str], expected: int | None) -> None:
    assert node.memory(environment, cpus=8, gpus=2) == expected


JOB = {"SLURM_JOB_ID": "4294967", "SLURM_NODEID": "0"}
MINE = f"ray-{os.getuid()}-4294967"


def test_the_folder_is_short_new_and_of_this_user_job_and_node_alone(tmp_path: Path) -> None:
    place = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else Path("/tmp")
    for number, name in (("0", MINE), ("3", f"{MINE}-3")):
        environment = {**JOB, "SLURM_NODEID": number, "TMPDIR": str(tmp_path / ("x" * 60))}
        left = place / name / "of a run before"
        left.mkdir(parents=True)
        made = node.folder(environment, (str(place),))
        try:
            assert made == place / name
            assert not left.exists()
            assert made.stat().st_mode & 0o777 == 0o700
            assert len(os.fsencode(made)) <= door.LONGEST_FOLDER < 45
        finally:
            made.rmdir()


def test_a_folder_that_is_too_long_another_users_or_shared_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    monkeypatch.setattr(node, "file_system", lambda place: "nfs4")
    with pytest.raises(StorageError) as caught:
        node.folder({**JOB, "TMPDIR": str(long)}, ("/tmp", "/dev/null"))
    text = str(caught.value)
    assert f"{long}: too long for Ray's sockets (at most " in text
    assert "/tmp: a shared file system (nfs4), on which sockets do not work" in text
    assert "/dev/null: cannot be written" in text
    assert text.endswith("slurm.before: export TMPDIR=...")
    monkeypatch.setattr(node.os, "getuid", lambda: 12345)
    other = Path("/tmp/ray-12345-4294967")
    other.mkdir()
    try:
        assert node.unfit(Path("/tmp"), other) == "ray-12345-4294967 there is another user's"
    finally:
        other.rmdir()


def test_file_systems_are_those_of_the_kernel() -> None:
    assert node.file_system(Path("/proc/self")) == "proc"
    assert not node.shared(node.file_system(Path("/tmp")))
    assert node.shared("lustre")
    assert node.shared("fuse.sshfs")
    assert not node.shared("fuse.fuse-overlayfs")


def test_the_address_is_of_the_interface_or_the_one_that_slurm_uses() -> None:
    assert node.address({}, "lo") == "127.0.0.1"
    with pytest.raises(SearchError, match=r"slurm.interface: 'ib7' has no IPv4 address on node .*; it has .*lo"):
        node.address({}, "ib7")
    assert node.address({"SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1"}, None) == "127.0.0.1"
    assert node.address({"SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1"}, None, head="127.0.0.9") == "127.0.0.1"
    own = node.address({"SLURM_LAUNCH_NODE_IPADDR": "203.0.113.9"}, None)  # of another host
    assert own != "203.0.113.9"
    assert node.interface_of(own)
