"""Check a cluster file (``ray_cluster.yaml``, a manifest of KubeRay) before it costs money.

``ray up`` has no dry run, and Ray's own validation lets pass what hurts later: a missing region (silently another one), a
misspelt machine setting, an absent file, a spot cluster that waits for ever, a dashboard open to the world.
"""

import importlib.metadata
import ipaddress
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from cddpm.cluster import internals, manifest
from cddpm.cluster.fault import STORAGE, Fault, images, items, mapping, placeholders, secrets, storage, texts
from cddpm.errors import ConfigError
from cddpm.text.likeness import did_you_mean

MACHINE_SETTINGS = frozenset(
    {
        "BlockDeviceMappings",
        "CapacityReservationSpecification",
        "CpuOptions",
        "CreditSpecification",
        "EbsOptimized",
        "IamInstanceProfile",
        "ImageId",
        "InstanceInitiatedShutdownBehavior",
        "InstanceMarketOptions",
        "InstanceType",
        "KeyName",
        "LaunchTemplate",
        "MetadataOptions",
        "Monitoring",
        "NetworkInterfaces",
        "Placement",
        "SecurityGroupIds",
        "SubnetIds",
        "TagSpecifications",
        "UserData",
    }
)
"""Settings of EC2 RunInstances that a node type may use, and Ray's ``SubnetIds``."""
PROVIDERS = {
    "aws": {"region": "without it machines start in us-west-2"},
    "gcp": {
        "region": "name it, as in europe-west4",
        "availability_zone": "name it, as in europe-west4-a",
        "project_id": "name the project that pays",
    },
    "local": {"head_ip": "name the host that leads", "worker_ips": "list the hosts that train"},
}
"""What each provider must be told, and why."""
MACHINES = {
    "aws": {
        "InstanceType": "name it, Ray's own default is out of date",
        "ImageId": "name it, Ray's own default is out of date",
        "IamInstanceProfile": "name a role's profile; Ray's own may do everything in EC2 and S3, and is for the head alone",
    },
    "gcp": {"machineType": "name it", "disks": "a boot disk with an image is needed"},
    "local": {},
}


def check(path: Path) -> list[Fault]:
    """All faults of the cluster file ``path``; like ``ray up``, it counts relative paths from the working directory.

    Raises ``ConfigError`` where the file cannot be read, or holds something else.
    """
    try:
        documents = [document for document in yaml.safe_load_all(path.read_text()) if document is not None]
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not documents or not all(isinstance(document, dict) for document in documents):
        raise ConfigError(f"{path}: a mapping of cluster settings, or manifests of KubeRay, are needed")
    ray = importlib.metadata.version("ray")
    locked = Path("requirements.lock")
    lock = re.search(r"^ray==(\S+)$", locked.read_text(), re.MULTILINE) if locked.is_file() else None
    found = []
    if lock and lock[1] != ray:
        found = [Fault("requirements.lock", f"ray=={lock[1]}, but this computer has Ray {ray}; both must be the same")]
    if any("kind" in document for document in documents):
        return [*found, *manifest.faults(documents, ray)]
    if len(documents) > 1:
        raise ConfigError(f"{path}: {len(documents)} YAML documents; `ray up` takes one")
    return [*found, *faults(documents[0], Path.cwd())]


def faults(config: Mapping[str, Any], folder: Path) -> list[Fault]:
    """Everything wrong with a file for ``ray up``; relative ``file_mounts`` sources count from ``folder``.

    Ray's own validation is asked where ours found nothing but placeholders: it stops at its first fault, and says it worse.
    """
    found, left = [*_own_faults(config, folder)], [*placeholders(config)]
    return [*found, *left] if found else [*left, *(Fault(*fault) for fault in internals.launcher_faults(config))]


def _own_faults(config: Mapping[str, Any], folder: Path) -> Iterator[Fault]:
    if not config.get("cluster_name"):
        yield Fault("cluster_name", "missing; two clusters without a name would be one")
    provider = mapping(config, "provider")
    kind = str(provider.get("type") or "")
    if not kind:
        yield Fault("provider.type", "missing; allowed is aws, gcp, or local for machines you own")
    elif kind not in PROVIDERS:
        yield Fault("provider.type", f"'{kind}' is not known here; allowed is aws, gcp or local")
    for setting, why in PROVIDERS.get(kind, {}).items():
        if not provider.get(setting):
            yield Fault(f"provider.{setting}", f"missing; {why}")
    if kind in ("aws", "gcp"):
        if config.get("max_workers") is None:
            yield Fault("max_workers", "missing; it is the ceiling of what the cluster can cost")
        yield from _machine_faults(mapping(config, "available_node_types"), kind)
        yield from _spot_faults(config)
    yield from secrets(config)
    yield from _token_faults(config)
    yield from _storage_faults(config)
    yield from _start_faults(config)
    yield from _port_faults(config)
    yield from _stop_faults(config)
    yield from _mount_faults(config, folder)
    docker = mapping(config, "docker")
    named = {f"docker.{key}": str(docker[key]) for key in ("image", "head_image", "worker_image") if key in docker}
    yield from images(named, importlib.metadata.version("ray"))


def _machine_faults(types: Mapping[str, Any], kind: str) -> Iterator[Fault]:
    if not types:
        yield Fault("available_node_types", "missing; a head and at least one worker type are needed")
    for name in types:
        machine, where = mapping(types, name, "node_config"), f"available_node_types.{name}.node_config"
        for setting, why in MACHINES[kind].items():
            if not machine.get(setting):
                yield Fault(f"{where}.{setting}", f"missing; {why}")
        for setting in sorted(map(str, machine.keys() - MACHINE_SETTINGS)) if kind == "aws" else ():
            yield Fault(f"{where}.{setting}", f"unknown setting{did_you_mean(setting, MACHINE_SETTINGS)}")


def _spot_faults(config: Mapping[str, Any]) -> Iterator[Fault]:
    types, head = mapping(config, "available_node_types"), str(config.get("head_node_type"))
    if head not in types:
        yield Fault("head_node_type", f"'{head}' is not among available_node_types ({', '.join(map(str, types))})")
    elif _is_spot(types[head]):
        yield Fault(
            f"available_node_types.{head}", "the head is a spot instance; when it is taken away all trials are lost"
        )
    workers = [mapping(types, name) for name in types if name != head]
    if workers and all(_is_spot(node) or node.get("max_workers") == 0 for node in workers):
        yield Fault("available_node_types", "every worker type is spot; add one that is not, to fall back on")


def _is_spot(node: Any) -> bool:
    machine = mapping(node, "node_config")
    scheduling = machine.get("scheduling") or []  # of GCP: one mapping, or a list of them
    return mapping(machine, "InstanceMarketOptions").get("MarketType") == "spot" or any(
        part.get("preemptible") or part.get("provisioningModel") == "SPOT"
        for part in (scheduling if isinstance(scheduling, list) else [scheduling])
        if isinstance(part, Mapping)
    )


def _token_faults(config: Mapping[str, Any]) -> Iterator[Fault]:
    docker, mounts = mapping(config, "docker"), mapping(config, "file_mounts")
    options = " ".join(map(str, items(docker, "run_options")))
    starts = [*_ray_starts(config, "head"), *_ray_starts(config, "worker")]
    if "RAY_AUTH_MODE=token" not in options and not (starts and all("RAY_AUTH_MODE=token" in s for s in starts)):
        yield Fault(
            "docker.run_options",
            "no '--env RAY_AUTH_MODE=token'; without it anyone who reaches the head may run code there (without Docker: "
            "put RAY_AUTH_MODE=token before every 'ray start')",
        )
    mounted = [str(target) for target, source in mounts.items() if "auth_token" in str(source)]
    if not mounted and mapping(config, "provider").get("type") != "local":
        yield Fault("file_mounts", "no auth_token; mount ~/.ray/auth_token, made by 'ray get-auth-token --generate'")
    looked_for = re.search(r"RAY_AUTH_TOKEN_PATH=(\S+)", options)
    if mounted and docker and (looked_for[1] if looked_for else "~/.ray/auth_token") not in mounted:
        yield Fault("docker.run_options", f"RAY_AUTH_TOKEN_PATH is not where the token is mounted ({mounted[0]})")


def _storage_faults(config: Mapping[str, Any]) -> Iterator[Fault]:
    in_docker = bool(mapping(config, "docker"))
    where = "docker.run_options" if in_docker else "setup_commands"
    options = items(mapping(config, "docker"), "run_options") if in_docker else items(config, "setup_commands")
    places = STORAGE.findall(" ".join(map(str, options)))
    yield from storage(where, places[0] if places else None, mapping(config, "provider").get("type") == "local")
    elsewhere = {path for path, text in texts(config) if STORAGE.search(text)}
    if len(places) > 1 or any(not path.startswith(f"{where}[") for path in elsewhere):
        yield Fault(where, f"CDDPM_STORAGE is told in several places ({', '.join(sorted(elsewhere))}); keep one")


def _start_faults(config: Mapping[str, Any]) -> Iterator[Fault]:
    if not _ray_starts(config, "head"):
        yield Fault("head_start_ray_commands", "no 'ray start'; Ray's default opens the dashboard to the network")
    elif not all("--disable-usage-stats" in start for start in _ray_starts(config, "head")):
        what = "no --disable-usage-stats; 'ray up' turns reports to Ray's makers on, whatever a variable says"
        yield Fault("head_start_ray_commands", what)


def _port_faults(config: Mapping[str, Any]) -> Iterator[Fault]:
    for role in ("head", "worker"):
        for i, command in enumerate(items(config, f"{role}_start_ray_commands")):
            for option, host in re.findall(r"(--(?:dashboard-)?host)[= ](\S+)", str(command)):
                if not _is_loopback(host):
                    what = f"{option}={host} opens what listens there to the network; allowed is 127.0.0.1"
                    yield Fault(f"{role}_start_ray_commands[{i}]", what)
    for path, text in texts(mapping(config, "docker"), "docker"):
        if re.match(r"(-p|--publish)\b", text):
            yield Fault(path, f"'{text}' opens a port; reach the head through ssh instead")
    for i, rule in enumerate(items(mapping(config, "provider", "security_group"), "IpPermissions")):
        if not isinstance(rule, Mapping) or (rule.get("FromPort"), rule.get("ToPort")) != (22, 22):
            yield Fault(f"provider.security_group.IpPermissions[{i}]", f"{rule} opens a port; allowed is 22 alone")


def _stop_faults(config: Mapping[str, Any]) -> Iterator[Fault]:
    """``ray stop`` goes by the names of processes: in a container it sees that container's."""
    for path, text in texts(config):
        if not mapping(config, "docker") and re.search(r"\bray stop\b", text):
            yield Fault(
                path, "'ray stop' ends every Ray on the host, a neighbour's too; end your own by its --temp-dir"
            )


def _ray_starts(config: Mapping[str, Any], role: str) -> list[str]:
    return [str(command) for command in items(config, f"{role}_start_ray_commands") if "ray start" in str(command)]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _mount_faults(config: Mapping[str, Any], folder: Path) -> Iterator[Fault]:
    for target, source in mapping(config, "file_mounts").items():
        if not (folder / Path(str(source)).expanduser()).exists():
            yield Fault(
                f"file_mounts.{target}", f"{source} does not exist (seen from {folder}, where 'ray up' is called)"
            )
