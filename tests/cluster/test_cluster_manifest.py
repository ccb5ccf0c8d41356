"""Manifests of KubeRay: whatever is taken out of the shipped one, or opened, is named with its path."""

import copy
import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cddpm.cluster.manifest import faults

FILE = Path(__file__).resolve().parents[2] / "launch" / "clusters" / "kuberay.yaml"
RAY = importlib.metadata.version("ray")
CLUSTER, HEAD = "RayCluster/cddpm.spec", "RayCluster/cddpm.spec.headGroupSpec"
Documents = list[dict[str, Any]]
Change = Callable[[dict[str, Any], Documents], Any]


@pytest.fixture
def documents() -> Documents:
    text = FILE.read_text().replace("<your-label>", "spot").replace("<your-value>", '"true"')
    text = text.replace("<your-bucket>", "scans").replace("<your-registry>", "registry.example.org")
    return copy.deepcopy([yaml.safe_load(yaml.dump(d, Dumper=NoAlias)) for d in yaml.safe_load_all(text)])


class NoAlias(yaml.SafeDumper):
    """Writes shared parts out, so that a test changes one place alone."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def pod(spec: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = spec["headGroupSpec"]["template"]["spec"]
    return found


WRONG: list[tuple[Change, str, str]] = [
    (lambda c, d: c.update(rayVersion="2.9.0"), f"{CLUSTER}.rayVersion", "this computer has Ray"),
    (lambda c, d: c.pop("rayVersion"), f"{CLUSTER}.rayVersion", "None"),
    (lambda c, d: c.pop("authOptions"), f"{CLUSTER}.authOptions", "token"),
    (lambda c, d: c["authOptions"].pop("secretName"), f"{CLUSTER}.authOptions", "secretName"),
    (lambda c, d: c["headGroupSpec"].update(serviceType="NodePort"), f"{HEAD}.serviceType", "opens the head"),
    (lambda c, d: c["headGroupSpec"]["rayStartParams"].pop("num-cpus"), f"{HEAD}.rayStartParams.num-cpus", "crowd"),
    (lambda c, d: c["workerGroupSpecs"].clear(), f"{CLUSTER}.workerGroupSpecs", "missing"),
    (lambda c, d: c["workerGroupSpecs"][1].pop("maxReplicas"), f"{CLUSTER}.workerGroupSpecs[1].maxReplicas", "ceiling"),
    (
        lambda c, d: pod(c).pop("terminationGracePeriodSeconds"),
        f"{HEAD}.template.spec.terminationGracePeriodSeconds",
        "killed while it saves",
    ),
    (
        lambda c, d: pod(c).update(terminationGracePeriodSeconds=90),
        f"{HEAD}.template.spec.terminationGracePeriodSeconds",
        "more than the 90 s",
    ),
    (
        lambda c, d: pod(c)["containers"][0].pop("lifecycle"),
        f"{HEAD}.template.spec.containers[0].lifecycle.preStop",
        "missing",
    ),
    (
        lambda c, d: pod(c)["containers"][0].update(image="rayproject/ray:2.9.0-py311"),
        f"{HEAD}.template.spec.containers[0].image",
        "Ray 2.9.0",
    ),
    (
        lambda c, d: pod(c)["containers"][1].update(image="registry.example.org/cddpm"),
        f"{HEAD}.template.spec.containers[1].image",
        "no fixed version",
    ),
    (
        lambda c, d: pod(c)["containers"][0].update(env=[{"name": "CDDPM_STORAGE", "value": "/data"}]),
        f"{HEAD}.template.spec.containers[0].env",
        "no place that all machines see",
    ),
    (
        lambda c, d: d.append({"kind": "Service", "metadata": {"name": "x"}, "spec": {"type": "LoadBalancer"}}),
        "Service/x.spec.type",
        "opens the cluster",
    ),
    (lambda c, d: d.append({"kind": "Ingress", "metadata": {"name": "x"}}), "Ingress/x", "opens the cluster"),
    (
        lambda c, d: d.append({"kind": "Secret", "metadata": {"name": "t"}, "stringData": {"auth_token": "0123"}}),
        "Secret/t",
        "kubectl create secret",
    ),
]


@pytest.mark.parametrize(("change", "where", "message"), WRONG, ids=[f"{w[1]} {w[2]}" for w in WRONG])
def test_each_fault_is_found_alone(documents: Documents, change: Change, where: str, message: str) -> None:
    assert not list(faults(documents, RAY))
    (cluster,) = (document["spec"] for document in documents if document["kind"] == "RayCluster")
    change(cluster, documents)
    (fault,) = faults(documents, RAY)
    assert fault.where == where
    assert message in fault.what


@pytest.mark.parametrize("name", ["CDDPM_STORAGE", "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
def test_what_all_pods_are_told_is_missed_in_each(documents: Documents, name: str) -> None:
    (told,) = (document["data"] for document in documents if document["kind"] == "ConfigMap")
    del told[name]
    found = list(faults(documents, RAY))
    assert len(found) == 3
    assert all(name in fault.what for fault in found)


def test_a_job_with_a_cluster_of_its_own_is_looked_at_too(documents: Documents) -> None:
    cluster, job = (next(d for d in documents if d["kind"] == kind) for kind in ("RayCluster", "RayJob"))
    job["spec"]["rayClusterSpec"] = cluster["spec"]
    documents.remove(cluster)
    assert not list(faults(documents, RAY))
    job["spec"]["rayClusterSpec"]["rayVersion"] = "1"
    (fault,) = faults(documents, RAY)
    assert fault.where == "RayJob/cddpm-sweep.spec.rayClusterSpec.rayVersion"


def test_without_a_cluster_there_is_nothing_to_look_at() -> None:
    assert [fault.where for fault in faults([{"kind": "Service"}], RAY)] == ["kind"]


@pytest.mark.slow
def test_the_hook_ends_ray_softly_and_waits_for_it(documents: Documents, tmp_path: Path) -> None:
    """In a process table of its own, with a stand-in for ``ray start --block`` that takes a second to end."""
    if os.getuid() or not shutil.which("unshare"):
        pytest.skip("a process table of its own needs root and the command unshare")
    (cluster,) = (document["spec"] for document in documents if document["kind"] == "RayCluster")
    hook = pod(cluster)["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    ray = tmp_path / "bin" / "ray"
    ray.parent.mkdir()
    ray.write_text(
        "import signal, sys, time\n"
        "def end(*_):\n    time.sleep(1)\n    print('saved', flush=True)\n    sys.exit()\n"
        "signal.signal(signal.SIGTERM, end)\nprint('started', flush=True)\ntime.sleep(60)\n"
    )
    script = f'"$1" {ray} start --block >{tmp_path}/log & until grep -q started {tmp_path}/log; do sleep 0.1; done; shift; "$@"'
    run = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "bash", "-c", script, "bash", sys.executable]
    done = subprocess.run([*run, *hook], capture_output=True, text=True, timeout=60, check=False)
    if "Operation not permitted" in done.stderr:
        pytest.skip(f"no process table of its own here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "log").read_text() == "started\nsaved\n"
