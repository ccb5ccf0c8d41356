"""Files that MLflow keeps, fetched with care: nothing outside of their folder, no links, packages as they were registered."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cddpm import artifact
from cddpm.errors import ArtifactError, AwayError, TrackingError
from cddpm.tracking import address, logged_model
from cddpm.tracking.package_files import KIND
from cddpm.tracking.version import Version

_MODEL_ID = re.compile(r"m-[0-9a-f]{32}")


def check_model_id(model_id: str) -> None:
    """Raises ``ArtifactError`` for what MLflow never gives out, such as a path."""
    if not _MODEL_ID.fullmatch(model_id):
        raise ArtifactError(f"its registry entry points to '{model_id}', which is no model id of MLflow")


def local_path(uri: str) -> Path | None:
    """The path of a ``file:`` URI or plain path, None for any other. Raises ``ArtifactError`` for one that climbs (``..``)."""
    parts = urlsplit(uri)
    if parts.scheme not in ("", "file") or parts.netloc not in ("", "localhost"):
        return None
    path = Path(unquote(parts.path))
    if ".." in path.parts or not path.is_absolute():
        raise ArtifactError(f"{uri}: climbs out of its folder; such an entry of the registry is refused")
    return path


def fetch_model(uri: str, target: Path, tracking_uri: str) -> Path:
    """Copy the logged model at an artifact URI below the folder ``target``; its digests are not compared yet.

    Raises ``ArtifactError`` if there is none, or a link among its files.
    """
    local = local_path(uri)
    if local is None:
        fetched = _download(uri, target, tracking_uri)
    else:
        artifact.read_manifest(local, logged_model.KIND)  # before anything is copied
        fetched = Path(shutil.copytree(local, target / local.name, symlinks=True))
    for path in fetched.rglob("*"):
        if path.is_symlink():
            raise ArtifactError(
                f"{uri}: '{path.relative_to(fetched)}' is a link; a model package holds its files itself"
            )
    return fetched


def read_file(folder_uri: str, name: str, target: Path, tracking_uri: str) -> bytes | None:
    """The bytes of the file ``name`` in a folder that MLflow keeps, None if it is not there.

    ``target``: folder for a download. Raises ``TrackingError`` if MLflow does not answer.
    """
    local = local_path(folder_uri)
    if local is not None:
        path = local / name
        return path.read_bytes() if path.is_file() and not path.is_symlink() else None
    try:
        return _download(f"{folder_uri.rstrip('/')}/{name}", target, tracking_uri).read_bytes()
    except ArtifactError:
        return None


def checked(version: Version, where: str, fetch: Callable[[], Path]) -> Path:
    """The package in the logged model that ``fetch`` gives, all digests compared.

    Raises ``ArtifactError`` that begins with ``where``.
    """
    try:
        path = logged_model.verify(fetch())
        found = artifact.read_manifest(path, KIND).fingerprint
    except ArtifactError as error:
        raise ArtifactError(
            f"{where}: its registered package is damaged or gone: {error}. Nothing was loaded"
        ) from None
    if found != version.fingerprint:
        raise ArtifactError(
            f"{where}: was registered as {version.fingerprint}, but {found} lies there. Nothing was loaded"
        )
    return path


def _download(uri: str, target: Path, tracking_uri: str) -> Path:
    import mlflow.artifacts  # slow to import; only servers and object stores need it
    from mlflow.exceptions import MlflowException

    try:
        with artifact.storage_errors(target):
            fetched = mlflow.artifacts.download_artifacts(
                artifact_uri=uri, dst_path=str(target), tracking_uri=tracking_uri
            )
    except MlflowException as error:
        if error.error_code == "INVALID_PARAMETER_VALUE":  # it looks whether a name climbs out of its folder
            raise ArtifactError(f"{uri}: MLflow refuses to fetch it: {address.one_line(error)}") from None
        if error.error_code != "RESOURCE_DOES_NOT_EXIST" and "404" not in str(error):
            raise TrackingError(f"{uri}: cannot be fetched: {address.one_line(error)}") from error
        raise ArtifactError(f"{uri}: was deleted from MLflow ({address.one_line(error)})") from None
    except OSError as error:
        if _is_absent(error):
            raise ArtifactError(f"{uri}: is not there ({address.one_line(error)})") from None
        raise AwayError(f"{uri}: cannot be fetched: {address.one_line(error)}") from error
    return Path(fetched)


def _is_absent(error: OSError) -> bool:
    status = getattr(getattr(error, "response", None), "status_code", None)  # of a download over HTTP
    return status == 404 or isinstance(error, FileNotFoundError)
