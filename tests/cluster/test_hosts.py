"""The test hosts are what they are to be, and processes on two of them meet although their names lead to loopback."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import ROOT, Hosts, missing

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(300)]

MEET = """
import sys
from datetime import timedelta
from cddpm.cluster import network
import torch
import torch.distributed as dist
rank, first, own, bound = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4] == "bound"
if bound:
    assert network.bind(own) == "eth0"
store = dist.TCPStore(first, 29500, 2, rank == 0, timedelta(seconds=100))
dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=10))
values = torch.full((1000,), rank + 1.0)
dist.all_reduce(values)
print("sum", values[0].item())
"""


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    if reason := missing():
        pytest.skip(reason)
    with Hosts(tmp_path_factory.mktemp("hosts")) as hosts:
        hosts.start(2, 3)
        yield hosts


def test_hosts_share_the_project_and_the_network_and_nothing_else(hosts: Hosts, tmp_path: Path) -> None:
    places = [*hosts.run(2, "echo $HOME /tmp /dev/shm /etc /var/tmp").stdout.split(), str(Path.home() / ".cache")]
    for number, place in enumerate(places):
        hosts.run(2, f"mkdir -p {place} && echo secret >{place}/only-here-{number}")
        assert hosts.run(3, f"cat {place}/only-here-{number}", check=False).returncode
        assert not Path(place, f"only-here-{number}").exists()
    assert hosts.run(3, "python -c 'import cddpm; print(cddpm.__file__)'").stdout == f"{ROOT}/cddpm/__init__.py\n"
    assert hosts.run(3, f"touch {ROOT}/x", check=False).returncode
    running = hosts.launch(2, "exec -a only-there sleep 100", tmp_path / "log")
    time.sleep(1)
    assert "only-there" in hosts.run(2, "ps ax").stdout
    assert "only-there" not in hosts.run(3, "ps ax").stdout
    running.kill()


def test_the_name_of_a_host_leads_to_loopback(hosts: Hosts) -> None:
    assert hosts.run(3, "hostname; getent hosts $(hostname)").stdout.split() == ["host3", "127.0.1.1", "host3"]


def meet(hosts: Hosts, folder: Path, *words: str) -> list[str]:
    """What the two processes print."""
    (folder / "meet.py").write_text(MEET)
    logs, running = [folder / f"{rank}.log" for rank in range(2)], []
    for rank, number in enumerate((2, 3)):
        hosts.run(number, "cat >/tmp/meet.py", stdin=MEET)
        given = f"{rank} {hosts.address(2)} {hosts.address(number)} {' '.join(words)}"
        running.append(hosts.launch(number, f"OMP_NUM_THREADS=1 python /tmp/meet.py {given}", logs[rank]))
    for process in running:
        process.wait(200)
    return [log.read_text() for log in logs]


@pytest.mark.nightly
def test_bound_processes_meet_and_others_do_not(hosts: Hosts, tmp_path: Path) -> None:
    assert all("sum 3.0" in said for said in meet(hosts, tmp_path, "bound"))
    assert all("sum" not in said for said in meet(hosts, tmp_path, "free"))


def test_a_lost_host_falls_silent_and_its_successor_is_empty(hosts: Hosts) -> None:
    hosts.run(3, "touch ~/mine")
    # it would end well if it could say farewell
    talking = subprocess.Popen([*hosts.ssh(3), "sleep 60"], stdin=subprocess.DEVNULL)
    time.sleep(1)
    hosts.kill(3)
    time.sleep(1)
    assert talking.poll() is None
    talking.kill()
    talking.wait()
    hosts.start(3)
    assert hosts.run(3, "ls ~/mine", check=False).returncode
