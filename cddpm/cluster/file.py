"""Check a cluster file (``ray_cluster.yaml``) before it costs money.

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

from cddpm.errors import ConfigError
from cddpm.text.likeness import did_you_mean

PLACEHOLDER = re.compile(r"<[^<>]*>|\b(TODO|FIXME|CHANGE_?ME|REPLACE_?ME|YOUR[_-]\w+)|\bX{3,}\b|\bami-(0+|x+)\b", re.I)
IMAGE = re.compile(r"rayproject/ray:(\d+\.\d+\.\d+)")
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


def check(path: Path) -> dict[str, Any]:
    """Read the cluster file ``path`` and return it. Raises ``ConfigError`` that lists all faults."""
    try:
        config = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{path}: holds {type(config).__name__}, a mapping of cluster settings is needed")
    found = [f"{path}: {fault}" for fault in faults(config, path.parent)]
    if found:
        raise ConfigError("\n".join(found))
    return config


def faults(config: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """Everything wrong with a cluster file's content; relative ``file_mounts`` sources count from ``folder``."""
    if not config.get("cluster_name"):
        yield "cluster_name: missing; two clusters without a name would be one"
    provider = _mapping(config, "provider")
    if not provider.get("type"):
        yield "provider.type: missing; allowed is aws, or local for machines you own"
    if provider.get("type") == "aws":
        if not provider.get("region"):
            yield "provider.region: missing; without it machines start in us-west-2"
        yield from _machine_faults(_mapping(config, "available_node_types"))
        yield from _spot_faults(config)
    yield from _placeholder_faults(config)
    yield from _token_faults(config)
    yield from _port_faults(config)
    yield from _mount_faults(config, folder)
    yield from _image_faults(_mapping(config, "docker"))


def _machine_faults(types: Mapping[str, Any]) -> Iterator[str]:
    if not types:
        yield "available_node_types: missing; a head and at least one worker type are needed"
    for name, node in types.items():
        machine, where = _mapping(node, "node_config"), f"available_node_types.{name}.node_config"
        for setting in ("InstanceType", "ImageId"):
            if not machine.get(setting):
                yield f"{where}.{setting}: missing; name it, Ray's own default is out of date"
        for setting in machine.keys() - MACHINE_SETTINGS:
            yield f"{where}.{setting}: unknown setting{did_you_mean(setting, MACHINE_SETTINGS)}"


def _spot_faults(config: Mapping[str, Any]) -> Iterator[str]:
    types, head = _mapping(config, "available_node_types"), str(config.get("head_node_type"))
    if head not in types:
        yield f"head_node_type: '{head}' is not among available_node_types ({', '.join(types)})"
    elif _is_spot(types[head]):
        yield f"available_node_types.{head}: the head is a spot instance; when it is taken away all trials are lost"
    workers = [_mapping(types, name) for name in types if name != head]
    if workers and all(_is_spot(node) or node.get("max_workers") == 0 for node in workers):
        yield "available_node_types: every worker type is spot; add one without InstanceMarketOptions to fall back on"


def _is_spot(node: Any) -> bool:
    return _mapping(_mapping(node, "node_config"), "InstanceMarketOptions").get("MarketType") == "spot"


def _placeholder_faults(config: Mapping[str, Any]) -> Iterator[str]:
    for path, text in _texts(config):
        if found := PLACEHOLDER.search(text):
            yield f"{path}: the placeholder '{found.group()}' is still there; write the real value"


def _token_faults(config: Mapping[str, Any]) -> Iterator[str]:
    in_docker = any("RAY_AUTH_MODE=token" in option for option in _list(_mapping(config, "docker"), "run_options"))
    starts = [*_ray_starts(config, "head"), *_ray_starts(config, "worker")]
    if not in_docker and not (starts and all("RAY_AUTH_MODE=token" in command for command in starts)):
        yield (
            "docker.run_options: no '--env RAY_AUTH_MODE=token'; without it anyone who reaches the head may run code "
            "there (without Docker: put RAY_AUTH_MODE=token before every 'ray start')"
        )
    mounted = any("auth_token" in str(source) for source in _mapping(config, "file_mounts").values())
    if _mapping(config, "provider").get("type") == "aws" and not mounted:
        yield "file_mounts: no auth_token; mount ~/.ray/auth_token, made by 'ray get-auth-token --generate'"


def _port_faults(config: Mapping[str, Any]) -> Iterator[str]:
    starts = _ray_starts(config, "head")
    if not starts:
        yield "head_start_ray_commands: no 'ray start'; Ray's default opens the dashboard to the network"
    for host in re.findall(r"--dashboard-host[= ](\S+)", " ".join(starts)):
        if not _is_loopback(host):
            yield f"head_start_ray_commands: --dashboard-host={host} opens the dashboard; allowed is 127.0.0.1"
    for options in ("run_options", "head_run_options", "worker_run_options"):
        for option in _list(_mapping(config, "docker"), options):
            if re.match(r"(-p|--publish)\b", option):
                yield f"docker.{options}: '{option}' opens a port; reach the head through ssh instead"
    group = _mapping(_mapping(config, "provider"), "security_group")
    for rule in group.get("IpPermissions") or ():
        if (rule.get("FromPort"), rule.get("ToPort")) != (22, 22):
            yield f"provider.security_group.IpPermissions: {dict(rule)} opens a port; allowed is 22 alone"


def _ray_starts(config: Mapping[str, Any], role: str) -> list[str]:
    return [command for command in _list(config, f"{role}_start_ray_commands") if "ray start" in command]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _mount_faults(config: Mapping[str, Any], folder: Path) -> Iterator[str]:
    for target, source in _mapping(config, "file_mounts").items():
        if not (folder / Path(str(source)).expanduser()).exists():
            yield f"file_mounts.{target}: {source} does not exist (relative to {folder})"


def _image_faults(docker: Mapping[str, Any]) -> Iterator[str]:
    here = importlib.metadata.version("ray")
    for key in ("image", "head_image", "worker_image"):
        for version in IMAGE.findall(str(docker.get(key, ""))):
            if version != here:
                yield f"docker.{key}: Ray {version}, but this computer has Ray {here}; both must be the same"


def _texts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _texts(part, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part, path)
    elif isinstance(value, str):
        yield path, value


def _mapping(parent: Any, key: str) -> Mapping[str, Any]:
    value = parent.get(key) if isinstance(parent, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def _list(parent: Mapping[str, Any], key: str) -> list[str]:
    value = parent.get(key)
    return [str(part) for part in value] if isinstance(value, list) else []
