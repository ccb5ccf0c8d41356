"""What is wrong with a cluster file, where; and how its parts are looked up, whatever somebody wrote in their place."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

PLACEHOLDER = re.compile(r"<[^<>]*>|\b(TODO|FIXME|CHANGE_?ME|REPLACE_?ME|YOUR[_-]\w+)|\bX{3,}\b|\bami-(0+|x+)\b", re.I)
SECRET = re.compile(
    r"""\b(RAY_AUTH_TOKEN|AWS_SECRET_ACCESS_KEY|AWS_SESSION_TOKEN|\w*PASSWORD)=(?!["']?\$)\S"""
    r"|\bAKIA[0-9A-Z]{16}\b|://[^/\s:@]+:[^/\s@]+@"
)
STORAGE = re.compile(r"\bCDDPM_STORAGE=(\S+)")
ADDRESS = re.compile(r"(s3|gs|abfs)://[^/]")
IMAGE = re.compile(r"\brayproject/ray\b")
VERSION = re.compile(r"(\d+\.\d+\.\d+)-(py\d+)")


class Fault(NamedTuple):
    """One fault: dotted path of the setting, and what is wrong with it and what to do."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def placeholders(value: Any) -> Iterator[Fault]:
    """What the author of a file left for its user to fill in."""
    for path, text in texts(value):
        if found := PLACEHOLDER.search(text):
            yield Fault(path, f"the placeholder '{found.group()}' is still there; write the real value")


def secrets(value: Any) -> Iterator[Fault]:
    """Tokens, keys and passwords that are written out; the message does not repeat them."""
    for path, text in texts(value):
        if found := SECRET.search(text):
            name = found[1] or ("a password in an address" if "://" in found.group() else "a key of AWS")
            yield Fault(path, f"{name} is written out; keep it in a file that is mounted, or use the machine's role")


def images(named: Mapping[str, str], ray: str) -> Iterator[Fault]:
    """Images of Ray by dotted path, of which each must be version ``ray``, and all of one Python."""
    pythons: dict[str, str] = {}
    for path, image in named.items():
        tag = image.rpartition("/")[2].partition(":")[2]
        own = not IMAGE.search(image)
        version = VERSION.match(tag)
        if tag in ("", "latest") or not (own or version):
            yield Fault(path, f"'{image}' is no fixed version; name it, as in rayproject/ray:{ray}-py311")
        elif version and version[1] != ray and not own:
            yield Fault(path, f"Ray {version[1]}, but this computer has Ray {ray}; both must be the same")
        elif version and not own:
            pythons[path] = version[2]
    if len(set(pythons.values())) > 1:
        which = ", ".join(f"{path} {python}" for path, python in pythons.items())
        yield Fault(min(pythons), f"images of several Pythons ({which}), which do not read each other; use one")


def storage(path: str, place: Any, folder_allowed: bool) -> Iterator[Fault]:
    """``place`` of data and results as ``CDDPM_STORAGE`` tells it to all machines; None if it is told nowhere."""
    allowed = "s3://bucket/prefix, gs://... or abfs://..." + (
        ", or a folder that all hosts share" if folder_allowed else ""
    )
    if place is None:
        yield Fault(path, f"no CDDPM_STORAGE; without it machines have no place in common. Allowed is {allowed}")
    elif not ADDRESS.match(str(place)) and not (folder_allowed and str(place).startswith("/")):
        yield Fault(path, f"CDDPM_STORAGE={place} is no place that all machines see; allowed is {allowed}")


def texts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text in ``value`` with its dotted path; parts of a list are numbered from 0."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from texts(part, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for i, part in enumerate(value):
            yield from texts(part, f"{path}[{i}]")
    elif isinstance(value, str):
        yield path, value


def mapping(parent: Any, *keys: Any) -> Mapping[str, Any]:
    """What is at ``keys`` below ``parent``; empty if that is missing or no mapping."""
    for key in keys:
        parent = parent.get(key) if isinstance(parent, Mapping) else None
    return parent if isinstance(parent, Mapping) else {}


def items(parent: Any, key: str) -> list[Any]:
    """What is at ``key``; empty if that is missing or no list."""
    value = parent.get(key) if isinstance(parent, Mapping) else None
    return value if isinstance(value, list) else []
