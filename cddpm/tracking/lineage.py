"""What registered models were made from, asked of MLflow: the fingerprints that must not disappear."""

from cddpm import artifact
from cddpm.errors import ArtifactError, TrackingError
from cddpm.tracking import names
from cddpm.tracking.package_files import KIND
from cddpm.tracking.registry import Registry
from cddpm.tracking.version import Version

_TAGS = (
    names.FINGERPRINT_STORE,
    names.FINGERPRINT_ENCODER,
    names.FINGERPRINT_GUIDE,
    names.FINGERPRINT_CHECKPOINT,
    names.FINGERPRINT_RECONSTRUCTION,
)


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
    package, tags = _package(registry, version), registry.run_tags(version)
    if package is None and tags is None:
        raise TrackingError(
            f"version {version.number} of '{registry.name}' in {registry.uri}: neither its run nor its package can be read, "
            "so what it was made from is unknown; restore one of them, or delete this version"
        )
    return (package or frozenset()) | frozenset(value for name, value in (tags or {}).items() if name in _TAGS)


def _package(registry: Registry, version: Version) -> frozenset[str] | None:
    try:
        folder = registry.local_package(version)
        return None if folder is None else origin_of_package(artifact.read_manifest(folder, KIND))
    except ArtifactError:
        return None


def origin_of_package(manifest: artifact.Manifest) -> frozenset[str]:
    """Fingerprints that a package says it was made from."""
    return frozenset(value for value in manifest.made_from.values() if isinstance(value, str))
