"""What registered models were made from, asked of MLflow: the fingerprints that must not disappear."""

from collections.abc import Iterator

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from cddpm import artifact
from cddpm.errors import ArtifactError, TrackingError
from cddpm.tracking import connection, names
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
    client = connection.connect(uri, create=False)
    with connection.told(uri):
        models = list(_models(client))
    found = {}
    for model in models:
        registry = Registry(client, uri, model)
        for version in registry.versions():
            aliases = f" ({', '.join(version.aliases)})" if version.aliases else ""
            found[f"{model} version {version.number}{aliases}"] = _origin(client, registry, version)
    return found


def _models(client: MlflowClient) -> Iterator[str]:
    page = None
    while page != "":
        part = client.search_registered_models(max_results=100, page_token=page)
        yield from (model.name for model in part)
        page = part.token or ""


def _origin(client: MlflowClient, registry: Registry, version: Version) -> frozenset[str]:
    """From the version's package where this machine can read it, and from the tags of its run."""
    with connection.told(f"version {version.number} of '{registry.name}'"):
        package, tags = _package(registry, version), _run_tags(client, version.run_id)
    if package is None and tags is None:
        raise TrackingError(
            f"version {version.number} of '{registry.name}' in {registry.uri}: neither its run nor its package can be read, "
            "so what it was made from is unknown; restore one of them, or delete this version"
        )
    return (package or frozenset()) | (tags or frozenset())


def _package(registry: Registry, version: Version) -> frozenset[str] | None:
    try:
        folder = registry.local_package(version)
        return None if folder is None else origin_of_package(artifact.read_manifest(folder, KIND))
    except (ArtifactError, MlflowException):
        return None


def origin_of_package(manifest: artifact.Manifest) -> frozenset[str]:
    """Fingerprints that a package says it was made from."""
    return frozenset(value for value in manifest.made_from.values() if isinstance(value, str))


def _run_tags(client: MlflowClient, run_id: str) -> frozenset[str] | None:
    try:
        tags = client.get_run(run_id).data.tags
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return frozenset(tags[name] for name in _TAGS if name in tags)
