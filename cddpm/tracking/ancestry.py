"""What a version descends from: data, store, encoder, checkpoint, reconstruction, score."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cddpm import artifact
from cddpm.errors import ArtifactError
from cddpm.tracking import names
from cddpm.tracking.registry import Registry
from cddpm.tracking.version import Version

DATA, STORE, ENCODER, GUIDE, CHECKPOINT = "data", "store", "encoder", "guide", "checkpoint"
RECONSTRUCTION, SCORE, VERSION = "reconstruction", "score", "version"
_MADE_FROM = {
    STORE: (DATA,),
    ENCODER: (STORE,),
    GUIDE: (STORE,),
    CHECKPOINT: (STORE, ENCODER),
    RECONSTRUCTION: (STORE, CHECKPOINT, GUIDE),
    SCORE: (RECONSTRUCTION,),
    VERSION: (CHECKPOINT, SCORE),
}
_FOLDERS = {
    STORE: "store",
    ENCODER: "encoder",
    GUIDE: "checkpoint",
    CHECKPOINT: "checkpoint",
    RECONSTRUCTION: "reconstruction",
}
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
        path = str(self.path) if self.path else None
        own = {"kind": self.kind, "fingerprint": self.fingerprint, "made_from": list(self.made_from)}
        return {**own, "facts": self.facts, "path": path}


def ancestry(registry: Registry, version: Version, artifacts: Path) -> list[Ancestor]:
    """The steps, oldest first, the version last; ``artifacts``: folder in which what is still here is looked for."""
    known = _fingerprints(registry, version)
    found: list[Ancestor] = []
    for kind in (DATA, STORE, ENCODER, GUIDE, CHECKPOINT, RECONSTRUCTION, SCORE, VERSION):
        name = version.fingerprint if kind == VERSION else known.get(kind)
        if kind in (ENCODER, GUIDE) and name is None:
            continue  # there was none
        path = _path(registry, version, artifacts, kind, name)
        parents = tuple(parent for parent in _MADE_FROM.get(kind, ()) if parent in {a.kind for a in found})
        found.append(Ancestor(kind, name, parents, _facts(kind, version, artifacts, known), path))
    return found


def _fingerprints(registry: Registry, version: Version) -> dict[str, str]:
    """From the version's tags; over them what its package says."""
    tags = {
        kind: version.tags[f"{names.FINGERPRINT}.{kind}"]
        for kind in _FOLDERS
        if f"{names.FINGERPRINT}.{kind}" in version.tags
    }
    try:
        content = registry.file_of_package(version, artifact.MANIFEST)
        made_from = json.loads(content)["made_from"] if content else {}
    except (ArtifactError, ValueError, KeyError):
        made_from = {}  # `verify` says so; the tags are still true
    return {**tags, **{kind: str(name) for kind, name in made_from.items() if kind in _FOLDERS}}


def _path(registry: Registry, version: Version, artifacts: Path, kind: str, name: str | None) -> Path | None:
    try:
        path = registry.local_package(version) if kind == VERSION else artifacts / _FOLDERS[kind] / str(name)
    except (ArtifactError, KeyError):
        return None
    return path.resolve() if path is not None and artifact.is_complete(path) else None


def _facts(kind: str, version: Version, artifacts: Path, known: Mapping[str, str]) -> dict[str, str]:
    match kind:
        case "data":
            return _data(version, artifacts / "store" / known.get(STORE, ""))
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
