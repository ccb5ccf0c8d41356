"""What versions were made from: one of them step by step, and the fingerprints that must not disappear for any of them."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cddpm import artifact
from cddpm.errors import ArtifactError, TrackingError
from cddpm.tracking import names
from cddpm.tracking.catalogue import Version
from cddpm.tracking.package_files import KIND
from cddpm.tracking.registry import Registry

DATA, STORE, ENCODER, GUIDE, CHECKPOINT = "data", "store", "encoder", "guide", "checkpoint"
RECONSTRUCTION, SCORE, VERSION = "reconstruction", "score", "version"
_MADE_FROM = {
    DATA: (),
    STORE: (DATA,),
    ENCODER: (STORE,),
    GUIDE: (STORE,),
    CHECKPOINT: (STORE, ENCODER),
    RECONSTRUCTION: (STORE, CHECKPOINT, GUIDE),
    SCORE: (RECONSTRUCTION,),
    VERSION: (CHECKPOINT, SCORE),
}
"""Oldest first."""
_CODE = (names.VERSION, names.COMMIT)


@dataclass(frozen=True)
class Ancestor:
    """One step on the way to a version."""

    kind: str
    fingerprint: str | None
    """None for the score, and for what the version does not tell."""
    made_from: tuple[str, ...]
    """Kinds of the steps before it."""
    facts: dict[str, str]
    path: Path | None = None
    """Where it lies on this machine, if it does."""

    def plain(self) -> dict[str, Any]:
        """As JSON data."""
        return {**asdict(self), "made_from": list(self.made_from), "path": str(self.path) if self.path else None}


def ancestry(registry: Registry, version: Version, artifacts: Path) -> list[Ancestor]:
    """The steps, oldest first, the version last; ``artifacts``: folder in which what is still here is looked for."""
    known = _fingerprints(registry, version)
    found: list[Ancestor] = []
    for kind, before in _MADE_FROM.items():
        name = known.get(kind)
        if kind in (ENCODER, GUIDE) and name is None:
            continue  # there was none
        path = _path(registry, version, artifacts, kind, name)
        parents = tuple(parent for parent in before if parent in {one.kind for one in found})
        found.append(
            Ancestor(kind, name, parents, _facts(kind, version, artifacts / STORE / known.get(STORE, "")), path)
        )
    return found


def _fingerprints(registry: Registry, version: Version) -> dict[str, str]:
    """From the version's tags; over them what its package says."""
    tags = {kind: version.tags[tag] for kind, tag in names.FINGERPRINTS.items() if tag in version.tags}
    try:
        content = registry.file_of_package(version, artifact.MANIFEST)
        made_from = json.loads(content)["made_from"] if content else {}
    except (ArtifactError, ValueError, KeyError):
        made_from = {}  # `verify` says so; the tags are still true
    said = {kind: str(name) for kind, name in made_from.items() if kind in names.FINGERPRINTS}
    return {**tags, **said, VERSION: version.fingerprint}


def _path(registry: Registry, version: Version, artifacts: Path, kind: str, name: str | None) -> Path | None:
    folder = CHECKPOINT if kind == GUIDE else kind
    try:
        path = registry.local_package(version) if kind == VERSION else artifacts / folder / (name or "-")
    except ArtifactError:
        return None
    return path.resolve() if path is not None and artifact.is_complete(path) else None


def _facts(kind: str, version: Version, store: Path) -> dict[str, str]:
    match kind:
        case "data":
            return _data(version, store)
        case "score":
            settings = {
                key.removeprefix(f"{names.SETTING}."): value
                for key, value in version.tags.items()
                if key.startswith(f"{names.SETTING}.scoring.")
            }
            metrics = {key: f"{value:.4f}" for key, value in version.metrics.items() if not key.startswith("test/")}
            shown = {key: value for key, value in metrics.items() if key.count("/") < 2}
            return {**dict(sorted(shown.items())), **dict(sorted(settings.items()))}
        case "version":
            code = {key.removeprefix("cddpm."): version.tags[key] for key in _CODE if key in version.tags}
            aliases = {"aliases": ", ".join(version.aliases)} if version.aliases else {}
            made = {"number": str(version.number), "trial": version.trial_name or "-", "run": version.run_id}
            return {**made, **aliases, "created": version.created, **code}
        case _:
            return {}


def _data(version: Version, store: Path) -> dict[str, str]:
    told = {"what": version.tags[names.DATA]} if names.DATA in version.tags else {}
    try:
        files = artifact.read_manifest(store, "store").made_from["files"]
    except (ArtifactError, KeyError):
        return told
    return {**told, "files": str(len(files)), "digest of files": artifact.fingerprint(files)}


# What must not disappear


def registered(uri: str) -> dict[str, frozenset[str]]:
    """Fingerprints that each version of each registered model was made from, by ``<model> version <n> (<aliases>)``.

    Raises ``TrackingError`` if nothing is there, nobody answers, or a version does not say what it was made from.
    """
    found = {}
    for model in Registry.open(uri).models():
        registry = Registry.open(uri, model)
        for version in registry.versions():
            aliases = f" ({', '.join(version.aliases)})" if version.aliases else ""
            found[f"{model} version {version.number}{aliases}"] = _origin(registry, version)
    return found


def _origin(registry: Registry, version: Version) -> frozenset[str]:
    """From the version's package where this machine can read it, and from the tags of its run."""
    run, package = registry.run(version.run_id), None
    try:
        folder = registry.local_package(version)
        package = None if folder is None else origin_of_package(artifact.read_manifest(folder, KIND))
    except ArtifactError:
        pass  # `verify` says so; the run may still tell
    if package is None and run is None:
        raise TrackingError(
            f"version {version.number} of '{registry.name}' in {registry.uri}: neither its run nor its package can be read, "
            "so what it was made from is unknown; restore one of them, or delete this version"
        )
    tags = run.tags if run else {}
    return (package or frozenset()) | {tags[tag] for tag in names.FINGERPRINTS.values() if tag in tags}


def origin_of_package(manifest: artifact.Manifest) -> frozenset[str]:
    """Fingerprints that a package says it was made from."""
    return frozenset(value for value in manifest.made_from.values() if isinstance(value, str))
