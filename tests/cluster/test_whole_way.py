"""From ``ray up`` to ``ray down`` in one run: hosts that share a bucket and nothing else, one of them lost, then all of them."""

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import s3_server
from hosts import Hosts, missing
from ray_on_hosts import HEAD, Cluster
from test_hosts_on_s3 import LAPTOP, OUT, sweep, weights
from test_two_hosts import BACK_SECONDS, OTHER, doctor, end_all, faults, groups

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.nightly, pytest.mark.timeout(3000)]
STORAGE = "s3://tests/way"
SERVER = "http://127.0.0.1:5000"
"""On the head's loopback alone."""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """By ``ray up``, before JuiceFS's gateway, which refuses uploads with checksums as older stores do."""
    if reason := missing():
        pytest.skip(reason)
    with Hosts(tmp_path / "hosts") as hosts, s3_server.juicefs(tmp_path, "0.0.0.0") as port:
        there = {"CDDPM_STORAGE": STORAGE, "MLFLOW_TRACKING_URI": SERVER}
        cluster = Cluster(hosts, (OTHER,), s3_server.environment(port, hosts.address(1), **there))
        up(cluster)
        yield cluster


def up(cluster: Cluster) -> None:
    """``ray up``, and its MLflow server answers."""
    cluster.up()
    open_door = "until (echo >/dev/tcp/127.0.0.1/5000) 2>/dev/null; do sleep 0.5; done"
    cluster.hosts.run(HEAD, f'timeout 120 bash -c "{open_door}"', seconds=130)


def until(true: Callable[[], bool], what: str, process: object, log: Path, seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, log.read_text()  # type: ignore[attr-defined]
        assert time.monotonic() < end, f"{what}\n{log.read_text()}"
        time.sleep(0.2)


def validated(log: Path) -> list[int]:
    """After how many images a training told of a validation; a start that resumes tells once more of that of its state."""
    return [int(n.replace(",", "")) for n in re.findall(r"after +([\d,]+) images", log.read_text())]


def computed(cluster: Cluster, name: str) -> dict[str, dict[str, float]]:
    """What the stages cost that a sweep has computed, not found: when each began (seconds since 1970), and its seconds."""
    rest, rows = cluster.hosts.run(HEAD, f"cat {OUT}/sweeps/{name}/stages/*.json").stdout.strip(), {}
    while rest:
        row, end = json.JSONDecoder().raw_decode(rest)
        rows[row["stage"]], rest = row, rest[end:].strip()
    return rows


def test_from_ray_up_to_ray_down(cluster: Cluster) -> None:
    hosts = cluster.hosts
    code, found = doctor(cluster, "--storage", STORAGE, "--tracking-uri", SERVER)
    assert (code, faults(found)) == (0, {})

    process, log = sweep(cluster, "calm", "--storage", f"{STORAGE}-calm", images=4096)
    assert process.wait(900) == 0, log.read_text()
    expected, before, calm = weights(cluster, "calm"), len(groups(cluster)), computed(cluster, "calm")
    assert groups(cluster)[-1][1] == {hosts.address(HEAD), hosts.address(OTHER)}

    # a host is lost while it trains, and another joins
    hosts.run(HEAD, f"rm {OUT}/artifacts")
    process, log = sweep(cluster, "lost", images=4096)
    until(lambda: validated(log) != [], "no state", process, log)
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
    first = validated(log)[0]
    until(lambda: max(validated(log)) > first, "no second state", process, log)
    time.sleep(5)  # the state is on its way
    gone = time.time()
    for number in (HEAD, OTHER):
        hosts.kill(number)
    process.kill()  # the ssh client, which knows of nothing
    process.wait()
    up(cluster)
    process, log = sweep(cluster, "lost", "--resume", images=4096)
    assert process.wait(900) == 0, log.read_text()
    assert "brought back from s3://" in log.read_text()
    assert min(validated(log)) > first, "steps that were saved were made again"
    assert weights(cluster, "lost") == expected
    found = computed(cluster, "lost")
    assert found["store"]["began"] < gone < found["checkpoint"]["began"]
    assert found["checkpoint"]["seconds"] < calm["checkpoint"]["seconds"], "it began anew"

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

    end_all(cluster)
