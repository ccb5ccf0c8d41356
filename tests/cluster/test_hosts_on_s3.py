"""Hosts that share nothing but a bucket: a sweep over two of them, one of them lost, both lost."""

import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import s3_server
import yaml
from hosts import ROOT, Hosts, missing
from ray_on_hosts import HEAD, Cluster
from small_sweep import CONFIG
from test_two_hosts import BACK_SECONDS, OTHER, doctor, faults, groups

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]
STORAGE = "s3://tests/shared"
OUT = "~/outputs"
LAPTOP = 4


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("bucket")
    with Hosts(folder / "hosts") as hosts, s3_server.moto(folder, "0.0.0.0") as port:
        cluster = Cluster(hosts, (OTHER,), s3_server.environment(port, hosts.address(1), CDDPM_STORAGE=STORAGE))
        cluster.start()
        yield cluster


def sweep(cluster: Cluster, name: str, *words: str, **settings: Any) -> tuple[Any, Path]:
    """Start a sweep of one training on the head, whose disk alone has its folder."""
    search = {**CONFIG["search"], "training": {**CONFIG["search"]["training"], "trials": 1}}
    config = {**CONFIG, "name": name, "pretraining": {"enabled": False}, "search": search}
    config["training"] = {**CONFIG["training"], **settings}
    cluster.hosts.run(HEAD, f"cat >~/{name}.yaml", stdin=yaml.safe_dump(config))
    log = cluster.hosts.folder / f"{name}-{len(words)}.log"
    given = f"--config ~/{name}.yaml --output-dir {OUT} --address auto {' '.join(words)}"
    return cluster.launch(f"python launch/sweep.py {given}", log), log


def weights(cluster: Cluster, name: str) -> str:
    found = cluster.hosts.run(HEAD, f"cat {OUT}/sweeps/{name}/packages/*/manifest.json").stdout
    return str(json.loads(found)["files"]["model.safetensors"])


def test_a_sweep_over_hosts_that_share_a_bucket_alone(cluster: Cluster) -> None:
    process, log = sweep(cluster, "both")
    assert process.wait(600) == 0, log.read_text()
    hosts = {cluster.hosts.address(HEAD), cluster.hosts.address(OTHER)}
    assert [found for _, found in groups(cluster)] == [hosts]
    assert "'cddpm': version 1 is the champion" in log.read_text()
    for number in (HEAD, OTHER):
        kinds = cluster.hosts.run(number, "ls ~/.cache/cddpm/*/artifacts").stdout.split()
        assert {"store", "checkpoint", "prediction"} <= set(kinds)
    assert cluster.hosts.run(OTHER, f"test -e {OUT}", check=False).returncode == 1


def test_the_doctor_finds_no_fault(cluster: Cluster) -> None:
    code, found = doctor(cluster, "--storage", STORAGE)
    assert (code, faults(found)) == (0, {})
    told = {check["what"] for check in found["checks"]}
    assert {"versions", "clocks", "all-reduce (gloo)"} < told
    assert {f"storage from {address}" for address in found["nodes"]} < told


@pytest.mark.nightly
def test_the_doctor_finds_that_there_is_no_such_bucket(cluster: Cluster) -> None:
    code, found = doctor(cluster, "--storage", "s3://absent/x")
    assert code == 6
    assert "there is no such bucket" in faults(found)["storage"]


PUT = """
import sys
from pathlib import Path
from cddpm.storage import Bucket
root = Path(sys.argv[1])
files = [file for file in root.rglob("*") if file.is_file()]
Bucket("s3://tests/scans").upload_all((file, str(file.relative_to(root))) for file in files)
"""


@pytest.mark.nightly
def test_scans_in_a_bucket_are_fetched_to_the_hosts_that_read_them(cluster: Cluster) -> None:
    """Checked and prepared on both hosts; the store is the one that the same scans in a folder give."""
    hosts = cluster.hosts
    process, log = sweep(cluster, "near", "--storage", "s3://tests/near")
    assert process.wait(600) == 0, log.read_text()
    hosts.run(HEAD, f"cd {ROOT} && {cluster.variables} python - $(echo {OUT}/data/phantom-*)", stdin=PUT)
    process, far = sweep(cluster, "far", "--storage", "s3://tests/far", "--data-dir", "s3://tests/scans")
    assert process.wait(600) == 0, far.read_text()
    stores = [re.findall(r"✓ slice store: (.*) \(", text.read_text()) for text in (log, far)]
    assert stores[0] == stores[1] != []
    place, images = "~/.cache/cddpm/.cddpm-scans/s3/tests/scans", "-path '*/t2/*.nii.gz'"
    names = hosts.run(HEAD, f"cd {place} && find . {images}").stdout.split()
    filled = f"find . {images} -printf '%b %p\\n' | sed -n 's/^[1-9][0-9]* //p'"  # what is only outlined has no blocks
    found = [hosts.run(n, f"cd {place} && {filled}").stdout.split() for n in (HEAD, OTHER)]
    assert all(found), "a host has read no scan"
    used = {name for name in names if "MSLUB" not in name}  # no data set of this sweep
    assert set(found[0]) | set(found[1]) == used < set(names)


DIGESTS = """
import sys
from hashlib import sha256
from cddpm.storage import Bucket
place = sys.argv[1]
bucket = Bucket(place if "://" in place else f"file://{place}")
for name in sorted(bucket.names()):
    if name.endswith(".nii.gz") and not name.startswith("."):
        print(name, sha256(bucket.read(name)).hexdigest())
"""
RAW = """
import sys
from pathlib import Path
sys.path.insert(0, "tests")
import raw_trees
raw_trees.ixi(Path(sys.argv[1]), {f"IXI{n:03d}-HH-{1000 + n}": ("t2",) for n in range(1, 6)})
"""


@pytest.mark.nightly
def test_raw_scans_in_a_bucket_are_prepared_on_both_hosts_into_it(cluster: Cluster) -> None:
    """As on one machine: the same files; a second run does nothing."""
    hosts, variables = cluster.hosts, cluster.variables
    hosts.run(HEAD, f"cd {ROOT} && python - ~/raw", stdin=RAW)
    hosts.run(HEAD, f"cd {ROOT} && {variables} python - ~/raw", stdin=PUT.replace("/scans", "/raw"))
    given = "--modality t2 --extractor classical --names ~/names.json --json"

    def prepared(raw: str, data: str, *words: str) -> dict[str, Any]:
        command = f"cddpm data prepare IXI {raw} {data} {given} {' '.join(words)}"
        done = hosts.run(HEAD, f"cd ~ && {variables} RAY_AUTH_MODE=token OMP_NUM_THREADS=1 {command}", seconds=600)
        return dict(json.loads(done.stdout))

    alone = prepared("~/raw", "~/prepared", "--at-once 1")
    spread = prepared("s3://tests/raw", "s3://tests/prepared", "--address auto")
    again = prepared("s3://tests/raw", "s3://tests/prepared", "--address auto")
    assert [found["made"] for found in (alone, spread, again)] == [5, 5, 0]
    assert (spread["failed"], again["there"]) == (0, 5)
    read = "cd ~/.cache/cddpm/.cddpm-scans/s3/tests/raw && find . -name '*.nii.gz' -printf '%b\\n' | grep -c '[1-9]'"
    assert all(int(hosts.run(number, read).stdout) for number in (HEAD, OTHER)), "a host has read no scan"
    digests = [
        hosts.run(HEAD, f"cd {ROOT} && {variables} python - {place}", stdin=DIGESTS).stdout
        for place in ("~/prepared", "s3://tests/prepared")
    ]
    assert digests[0] == digests[1]
    assert len(digests[0].splitlines()) == 10  # images and masks


@pytest.mark.nightly
@pytest.mark.timeout(1200)
def test_a_third_machine_needs_nothing_but_the_servers_address(cluster: Cluster) -> None:
    """An MLflow server on the head, its files in the bucket, served through it: a laptop needs no keys of the store."""
    hosts, head = cluster.hosts, cluster.hosts.address(HEAD)
    uri, place = f"http://{head}:5000", "--folder ~/server --artifacts s3://tests/mlflow"
    server = cluster.launch(
        f"bash launch/mlflow_server.sh {place} --host {head} --open --python {sys.executable}",
        hosts.folder / "mlflow.log",
    )
    try:
        process, log = sweep(cluster, "served", "--tracking-uri", uri)
        assert process.wait(600) == 0, log.read_text()
        scan = hosts.run(HEAD, f"ls {OUT}/data/*/Test/Brats21/t2/*.nii.gz | head -1").stdout.strip()
        content = hosts.run(HEAD, f"base64 {scan}").stdout
        hosts.start(LAPTOP)
        hosts.run(LAPTOP, "base64 -d >~/scan.nii.gz", stdin=content)
        given = f"--tracking-uri {uri}"
        listed = hosts.run(LAPTOP, f"cd ~ && cddpm registry list {given}").stdout
        assert "champion" in listed
        hosts.run(LAPTOP, f"cd ~ && cddpm registry verify {given}")  # exit code 4, which is an error, if one is damaged
        hosts.run(LAPTOP, f"cd ~ && cddpm registry pull champion ~/package {given}")
        assert "manifest.json" in hosts.run(LAPTOP, "ls ~/package").stdout
        hosts.run(LAPTOP, f"cd ~ && cddpm predict ~/scan.nii.gz --out ~/found --model champion {given}", seconds=300)
        assert "anomaly_map.nii.gz" in hosts.run(LAPTOP, "find ~/found").stdout
    finally:
        server.kill()
        hosts.run(HEAD, "pkill -f 'mlflow server'", check=False)


@pytest.mark.nightly
@pytest.mark.timeout(2400)
def test_a_host_and_then_all_are_lost_and_nothing_is_made_twice(cluster: Cluster) -> None:
    hosts = cluster.hosts
    process, log = sweep(cluster, "calm", images=2048)
    assert process.wait(900) == 0, log.read_text()
    expected, before = weights(cluster, "calm"), len(groups(cluster))
    elsewhere = ("--storage", f"{STORAGE}-lost")  # where nothing is found ready
    hosts.run(HEAD, f"rm {OUT}/artifacts")
    process, log = sweep(cluster, "lost", *elsewhere, images=2048)
    end = time.monotonic() + 400
    while "after" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.2)
    hosts.kill(OTHER)
    cluster.await_nodes(1)
    hosts.start(OTHER)
    cluster.join(OTHER)
    joined = cluster.await_nodes(2)
    while len(groups(cluster)) < before + 2:
        assert process.poll() is None, log.read_text()
        time.sleep(0.5)
    again = groups(cluster)[-1][0]
    print(f"back in training {again - joined:.1f} s after the successor had joined")
    assert again - joined < BACK_SECONDS
    while log.read_text().count("images: validation") < 2:  # its second state is saved, and on its way
        assert process.poll() is None, log.read_text()
        time.sleep(0.2)
    hosts.kill(HEAD)
    hosts.kill(OTHER)
    process.kill()  # the ssh client, which knows of nothing
    process.wait()
    cluster.start()
    process, log = sweep(cluster, "lost", *elsewhere, "--resume", images=2048)
    assert process.wait(900) == 0, log.read_text()
    assert "brought back from s3://" in log.read_text()
    assert weights(cluster, "lost") == expected
