"""From ``ray up`` to ``ray down`` in one run: hosts that share a bucket and nothing else, one of them lost, then all of them."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import s3_server
from hosts import Hosts, missing
from pyarrow import fs
from ray_on_hosts import HEAD, Cluster
from test_hosts_on_s3 import LAPTOP, OUT, sweep, weights
from test_two_hosts import BACK_SECONDS, OTHER, doctor, faults, groups, rays

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.nightly, pytest.mark.timeout(3000)]
STORAGE = "s3://tests/way"
SERVER = "http://127.0.0.1:5000"
"""On the head's loopback alone."""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """By ``ray up``, before JuiceFS's gateway, which refuses uploads with checksums as older stores do."""
    if reason := missing():
        pytest.skip(reason)
    with Hosts(tmp_path / "hosts") as hosts, s3_server.juicefs(tmp_path, "0.0.0.0") as port:
        for name, value in s3_server.environment(port).items():
            monkeypatch.setenv(name, value)
        there = {"CDDPM_STORAGE": STORAGE, "MLFLOW_TRACKING_URI": SERVER}
        cluster = Cluster(hosts, (OTHER,), s3_server.environment(port, hosts.address(1), **there))
        cluster.up()
        yield cluster


def until(true: Callable[[], bool], what: str, process: object, log: Path, seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, log.read_text()  # type: ignore[attr-defined]
        assert time.monotonic() < end, f"{what}\n{log.read_text()}"
        time.sleep(0.2)


def artifacts() -> dict[str, float]:
    """When each file of an artifact was written to the bucket."""
    system, path = fs.FileSystem.from_uri(f"{STORAGE}/artifacts")
    found = system.get_file_info(fs.FileSelector(path, recursive=True))
    return {one.path: one.mtime_ns for one in found if one.type == fs.FileType.File}


def progress(log: Path) -> list[int]:
    """Images that a training was told to have seen."""
    return [int(n.replace(",", "")) for n in re.findall(r"training: ([\d,]+) of", log.read_text())]


def test_from_ray_up_to_ray_down(cluster: Cluster) -> None:
    hosts = cluster.hosts
    code, found = doctor(cluster, "--storage", STORAGE, "--tracking-uri", SERVER)
    assert (code, faults(found)) == (0, {})

    process, log = sweep(cluster, "calm", "--storage", f"{STORAGE}-calm", images=2048)
    assert process.wait(900) == 0, log.read_text()
    expected, before = weights(cluster, "calm"), len(groups(cluster))
    assert groups(cluster)[-1][1] == {hosts.address(HEAD), hosts.address(OTHER)}

    # a host is lost while it trains, and another joins
    hosts.run(HEAD, f"rm {OUT}/artifacts")
    process, log = sweep(cluster, "lost", images=2048)
    until(lambda: "after" in log.read_text(), "no state", process, log)
    hosts.kill(OTHER)
    cluster.await_nodes(1)
    hosts.start(OTHER)
    cluster.join(OTHER)
    joined = cluster.await_nodes(2)
    until(lambda: len(groups(cluster)) >= before + 2, "not back in training", process, log)
    again = groups(cluster)[-1][0]
    print(f"back in training {again - joined:.1f} s after the successor had joined")
    assert again - joined < BACK_SECONDS

    # all are lost, the head's disk too; what was made until then is not made again
    until(lambda: max(progress(log), default=0) > 1024 + 256, "no second state", process, log)
    for number in (HEAD, OTHER):
        hosts.kill(number)
    process.kill()  # the ssh client, which knows of nothing
    process.wait()
    made = artifacts()
    assert {path.split("/")[3] for path in made} >= {"store", "checkpoint"}, made
    cluster.up()
    process, log = sweep(cluster, "lost", "--resume", images=2048)
    assert process.wait(900) == 0, log.read_text()
    assert "brought back from s3://" in log.read_text()
    assert min(progress(log)) > 1024, "steps that were saved were made again"
    stays = {path: written for path, written in made.items() if "/store/" in path}
    assert stays
    assert {path: written for path, written in artifacts().items() if path in stays} == stays
    assert weights(cluster, "lost") == expected

    # a laptop with the server's address, through a tunnel as `ray attach -p 5000` makes it
    scan = hosts.run(HEAD, f"ls {OUT}/data/*/Test/Brats21/t2/*.nii.gz | head -1").stdout.strip()
    content = hosts.run(HEAD, f"base64 {scan}").stdout
    hosts.start(LAPTOP)
    hosts.run(LAPTOP, "base64 -d >~/scan.nii.gz", stdin=content)
    tunnel = "ssh -fN -i /etc/cddpm/key -o StrictHostKeyChecking=no -o BatchMode=yes -L 5000:127.0.0.1:5000"
    hosts.run(LAPTOP, f"{tunnel} root@{hosts.address(HEAD)} </dev/null >/dev/null 2>&1")
    given = f"--tracking-uri {SERVER}"
    assert "champion" in hosts.run(LAPTOP, f"cd ~ && cddpm registry list {given}").stdout
    hosts.run(LAPTOP, f"cd ~ && cddpm registry verify {given}")  # exit code 4, which is an error, if one is damaged
    hosts.run(LAPTOP, f"cd ~ && cddpm predict ~/scan.nii.gz --out ~/found --model champion {given}", seconds=300)
    assert "anomaly_map.nii.gz" in hosts.run(LAPTOP, "find ~/found").stdout

    cluster.down()
    assert rays(hosts, HEAD) == []
    end = time.monotonic() + 150
    while (left := rays(hosts, OTHER)) and time.monotonic() < end:
        time.sleep(1)
    assert left == []
