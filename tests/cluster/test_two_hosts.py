"""Two hosts that share but the network and one folder, set up by ``ray up``: a sweep over both, and what the doctor finds."""

import datetime
import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from hosts import Hosts, missing
from ray_on_hosts import HEAD, Cluster
from small_sweep import CONFIG

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.nightly, pytest.mark.timeout(900)]
OTHER = 3
BACK_SECONDS = 30
"""From the moment a lost host's successor has joined until its training goes on."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "shared").mkdir()
    with Hosts(folder / "hosts", shared=[folder / "shared"]) as hosts:
        cluster = Cluster(hosts, workers=(OTHER,))
        cluster.start()
        yield cluster


@pytest.fixture
def shared(cluster: Cluster) -> Path:
    """The folder that all hosts see."""
    return cluster.hosts.folder.parent / "shared"


def sweep(cluster: Cluster, folder: Path, name: str, **settings: Any) -> tuple[Any, Path]:
    """Start a sweep of one training on the head, with no variable set; returns its process and what it prints."""
    search = {**CONFIG["search"], "training": {**CONFIG["search"]["training"], "trials": 1}}
    config = {**CONFIG, "name": name, "pretraining": {"enabled": False}, "search": search}
    config["training"] = {**CONFIG["training"], **settings}
    file, log = folder / f"{name}.yaml", folder / f"{name}.log"
    file.write_text(yaml.safe_dump(config))
    words = f"launch/sweep.py --config {file} --output-dir {folder}/out --address auto"
    return cluster.launch(f"python {words}", log), log


def groups(cluster: Cluster) -> list[tuple[float, set[str]]]:
    """When each worker group of trainings began (seconds since 1970), and the addresses of its processes."""
    lines = cluster.hosts.run(
        HEAD, "cat /tmp/ray/session_latest/logs/train/ray-train-app-controller*"
    ).stdout.splitlines()
    told = [json.loads(line) for line in lines if "Started training worker group" in line]
    return sorted(
        (
            datetime.datetime.strptime(one["asctime"], "%Y-%m-%d %H:%M:%S,%f").timestamp(),
            set(re.findall(r"ip=([\d.]+)", one["message"])),
        )
        for one in told
    )


def weights(folder: Path, name: str) -> str:
    (path,) = (folder / "out/sweeps" / name).glob("packages/*/manifest.json")
    return str(json.loads(path.read_text())["files"]["model.safetensors"])


def test_a_sweep_trains_on_both_hosts_and_registers_a_champion(cluster: Cluster, shared: Path) -> None:
    process, log = sweep(cluster, shared, "both")
    code = process.wait(600)
    assert code == 0, log.read_text()
    hosts = {cluster.hosts.address(HEAD), cluster.hosts.address(OTHER)}
    assert [found for _, found in groups(cluster)] == [hosts]
    client = mlflow.MlflowClient(f"sqlite:///{shared}/out/mlflow.db")
    assert client.get_model_version_by_alias("cddpm", "champion").tags["cddpm.sweep"] == "both"


def test_a_folder_that_is_not_shared_is_refused_at_once(cluster: Cluster, shared: Path) -> None:
    place = cluster.hosts.folder.parent / "elsewhere"
    started = time.monotonic()
    process = cluster.launch(
        f"python launch/sweep.py --config {shared}/both.yaml --output-dir {place} --address auto",
        shared / "refused.log",
    )
    assert process.wait(120) == 6
    said = (shared / "refused.log").read_text()
    assert f"not the same folder on node(s) {cluster.hosts.address(OTHER)}" in said
    assert "shared" in said
    print(f"refused after {time.monotonic() - started:.1f} s, imports included")


def doctor(cluster: Cluster, *words: str) -> tuple[int, dict[str, Any]]:
    """Exit code, and what it found."""
    command = f"python -m cddpm cluster doctor --json {' '.join(words)}"
    done = cluster.hosts.run(HEAD, f"{cluster.variables} RAY_AUTH_MODE=token {command}", check=False)
    return done.returncode, json.loads(done.stdout)


def faults(found: dict[str, Any]) -> dict[str, str]:
    return {check["what"]: check["found"] for check in found["checks"] if check["remedy"]}


def test_the_doctor_finds_no_fault_in_a_sound_cluster(cluster: Cluster, shared: Path) -> None:
    started = time.monotonic()
    code, found = doctor(cluster, "--storage", str(shared), "--tracking-uri", f"sqlite:///{shared}/out/mlflow.db")
    print(f"the doctor took {time.monotonic() - started:.1f} s")
    assert (code, faults(found)) == (0, {})
    assert set(found["nodes"]) == {cluster.hosts.address(HEAD), cluster.hosts.address(OTHER)}
    assert {node["interface"] for _, _, node in found["nodes"].values()} == {"eth0"}
    told = {check["what"] for check in found["checks"]}
    assert {"versions", "clocks", "all-reduce (gloo)", "MLflow"} < told
    assert {f"storage from {address}" for address in found["nodes"]} < told
    assert not list(shared.glob(".doctor*"))


def test_the_doctor_finds_a_firewall_a_foreign_folder_and_no_lab_book(cluster: Cluster, tmp_path: Path) -> None:
    hosts = cluster.hosts
    head, other = hosts.address(HEAD), hosts.address(OTHER)
    hosts.run(HEAD, "mkdir -p /tmp/mine")
    for number, source in ((HEAD, other), (OTHER, head)):  # Ray's own ports lie below
        hosts.run(number, f"iptables -I INPUT -p tcp --syn --dport 32768:60999 -s {source} -j DROP")
    try:
        code, found = doctor(cluster, "--storage", "/tmp/mine", "--tracking-uri", "http://127.0.0.1:9")
    finally:
        for number in (HEAD, OTHER):
            hosts.run(number, "iptables -F INPUT")
    assert code == 6
    told = faults(found)
    assert set(told) == {"all-reduce (gloo)", f"storage from {other}", "MLflow"}
    assert f"{head} and {other}" in told["all-reduce (gloo)"] or f"{other} and {head}" in told["all-reduce (gloo)"]


@pytest.mark.timeout(1800)
def test_a_training_whose_host_is_lost_ends_as_if_nothing_had_been(cluster: Cluster, shared: Path) -> None:
    process, log = sweep(cluster, shared, "calm", images=2048)
    assert process.wait(900) == 0, log.read_text()
    before = len(groups(cluster))
    shutil.rmtree(shared / "out/artifacts")  # else it would find what the calm one has made
    process, log = sweep(cluster, shared, "lost", images=2048)
    end = time.monotonic() + 300
    while "after" not in log.read_text():  # a validation: something is saved
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.2)
    cluster.hosts.kill(OTHER)
    cluster.await_nodes(1)
    cluster.hosts.start(OTHER)
    cluster.join(OTHER)
    joined = cluster.await_nodes(2)
    assert process.wait(900) == 0, log.read_text()
    *_, (again, found) = groups(cluster)
    assert len(groups(cluster)) == before + 2
    assert found == {cluster.hosts.address(HEAD), cluster.hosts.address(OTHER)}
    print(f"back in training {again - joined:.1f} s after the successor had joined")
    assert again - joined < BACK_SECONDS
    assert weights(shared, "lost") == weights(shared, "calm")


def test_ray_up_makes_a_cluster_of_hosts_that_share_nothing_and_ray_down_leaves_no_process(tmp_path: Path) -> None:
    if reason := missing():
        pytest.skip(reason)
    with Hosts(tmp_path / "hosts") as hosts:
        cluster = Cluster(hosts, workers=(OTHER,))
        cluster.up()
        assert rays(hosts, HEAD)
        assert rays(hosts, OTHER)
        end_all(cluster)


def end_all(cluster: Cluster) -> None:
    """``ray down``, after which no host has a process of Ray's left."""
    cluster.down()
    assert rays(cluster.hosts, HEAD) == []
    end = time.monotonic() + 150
    while (left := rays(cluster.hosts, OTHER)) and time.monotonic() < end:
        time.sleep(1)
    assert left == []


def rays(hosts: Hosts, number: int) -> list[str]:
    """Ray's processes on a host, and what watches over them."""
    lines = hosts.run(number, "ps -e -o args=").stdout.splitlines()
    return [line for line in lines if "/ray/" in line or line.startswith("ray::") or "end_with_head" in line]
