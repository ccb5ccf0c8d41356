"""Check manifests of KubeRay (kinds RayCluster and RayJob) for what Kubernetes takes and what hurts later."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cddpm.cluster.fault import Fault, images, items, mapping, placeholders, secrets, storage

DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
OPEN_SERVICES = ("LoadBalancer", "NodePort")
Document = Mapping[str, Any]


def faults(documents: Sequence[Document], ray: str) -> Iterator[Fault]:
    """Everything wrong with the documents of one file, for version ``ray`` on this computer."""
    named = {f"{d.get('kind', 'document')}/{mapping(d, 'metadata').get('name', '?')}": d for d in documents}
    clusters = {f"{path}.spec": mapping(d, "spec") for path, d in named.items() if d.get("kind") == "RayCluster"}
    for path, document in named.items():
        if "rayClusterSpec" in mapping(document, "spec"):
            clusters[f"{path}.spec.rayClusterSpec"] = mapping(document, "spec", "rayClusterSpec")
    if not clusters:
        yield Fault("kind", "no RayCluster, and no RayJob with one, is among the documents")
    told = {
        str(mapping(d, "metadata").get("name")): mapping(d, "data") for d in documents if d.get("kind") == "ConfigMap"
    }
    for path, document in named.items():
        yield from (Fault(f"{path}.{where}", what) for where, what in (*placeholders(document), *secrets(document)))
        yield from _door_faults(path, document)
    for path, spec in clusters.items():
        yield from _cluster_faults(path, spec, told, ray)


def _door_faults(path: str, document: Document) -> Iterator[Fault]:
    kind, spec = document.get("kind"), mapping(document, "spec")
    if kind == "Service" and spec.get("type") in OPEN_SERVICES:
        yield Fault(f"{path}.spec.type", f"{spec['type']} opens the cluster to the outside; allowed is ClusterIP")
    if kind == "Ingress":
        yield Fault(path, "opens the cluster to the outside; use 'kubectl port-forward'")
    if kind == "Secret" and (document.get("data") or document.get("stringData")):
        yield Fault(path, "a secret is written out; make it with 'kubectl create secret'")


def _cluster_faults(path: str, spec: Document, told: Document, ray: str) -> Iterator[Fault]:
    if spec.get("rayVersion") != ray:
        what = f"{spec.get('rayVersion')}, but this computer has Ray {ray}; both must be the same"
        yield Fault(f"{path}.rayVersion", what)
    options = mapping(spec, "authOptions")
    if options.get("mode") != "token" or not options.get("secretName"):
        what = "mode 'token' and the secretName of your token are needed; without it anyone in the network may run code"
        yield Fault(f"{path}.authOptions", what)
    head, workers = mapping(spec, "headGroupSpec"), items(spec, "workerGroupSpecs")
    if head.get("serviceType") in OPEN_SERVICES:
        yield Fault(f"{path}.headGroupSpec.serviceType", f"{head['serviceType']} opens the head; allowed is ClusterIP")
    if str(mapping(head, "rayStartParams").get("num-cpus")) != "0":
        yield Fault(f"{path}.headGroupSpec.rayStartParams.num-cpus", 'not "0"; trainings would crowd the drivers out')
    if not workers:
        yield Fault(f"{path}.workerGroupSpecs", "missing; at least one group of workers is needed")
    for i, group in enumerate(workers):
        if mapping(group).get("maxReplicas") is None:
            what = "missing; it is the ceiling of what the group can cost"
            yield Fault(f"{path}.workerGroupSpecs[{i}].maxReplicas", what)
    named: dict[str, str] = {}
    groups = {"headGroupSpec": head, **{f"workerGroupSpecs[{i}]": group for i, group in enumerate(workers)}}
    for name, group in groups.items():
        where, pod = f"{path}.{name}.template.spec", mapping(group, "template", "spec")
        yield from _pod_faults(where, pod, told)
        for i, container in enumerate(items(pod, "containers")):
            named[f"{where}.containers[{i}].image"] = str(mapping(container).get("image"))
    yield from images(named, ray)


def _pod_faults(path: str, pod: Document, told: Document) -> Iterator[Fault]:
    """``told``: variables by the name of the ConfigMap that holds them."""
    container = mapping(dict(enumerate(items(pod, "containers"))), 0)  # KubeRay starts Ray in the first
    where = f"{path}.containers[0]"
    variables: dict[str, Any] = {}
    for source in items(container, "envFrom"):
        variables |= mapping(told, str(mapping(source, "configMapRef").get("name")))
    variables |= {str(mapping(v).get("name")): mapping(v).get("value") for v in items(container, "env")}
    yield from storage(f"{where}.env", variables.get("CDDPM_STORAGE"), False)
    grace, drain = pod.get("terminationGracePeriodSeconds"), str(variables.get(DRAIN))
    if not drain.isdecimal():
        yield Fault(f"{where}.env", f"no {DRAIN} in whole seconds: the time that a training has to save itself")
    elif not isinstance(grace, int) or grace <= int(drain):
        what = f"{grace}; more than the {drain} s of {DRAIN} are needed, or the pod is killed while it saves"
        yield Fault(f"{path}.terminationGracePeriodSeconds", what)
    if not mapping(container, "lifecycle", "preStop"):
        yield Fault(f"{where}.lifecycle.preStop", "missing; what asks Ray to let trainings save before the pod ends")
