"""The files of model packages: whether they are those that were written, alone and as MLflow keeps them.

A package that was registered lies whole inside of a logged model of MLflow (what else is there: ``logged_model``). It is fetched
with care: nothing outside of its folder, no links. No weights are read here, no PyTorch is needed. What is in a package, and
who writes it: ``cddpm.tracking.package``.
"""

import shutil
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cddpm import artifact
from cddpm.errors import ArtifactError, AwayError, TrackingError
from cddpm.tracking import address

KIND = "model"
LOGGED_MODEL = "logged model"
"""Kind of the artifact that holds a package inside of MLflow."""
INSIDE = Path("data", "package")
"""Where the package lies there."""
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
PIPELINE = "pipeline.json"
FILES = frozenset({WEIGHTS, CONFIG, PIPELINE})


def verify_package(directory: Path) -> artifact.Manifest:
    """Compare the package's files with its manifest; the weights are not loaded. Raises ``ArtifactError``."""
    listed_files(directory)
    return artifact.verify(directory, KIND)


def listed_files(directory: Path) -> artifact.Manifest:
    """The package's manifest, if it lists what a package has; no file is read. Raises ``ArtifactError``."""
    manifest = artifact.read_manifest(directory, KIND)
    listed = set(manifest.files)
    if listed != FILES:
        raise ArtifactError(
            f"{directory / artifact.MANIFEST}: lists {', '.join(sorted(listed)) or 'nothing'}; a model package has exactly "
            f"{', '.join(sorted(FILES))}"
        )
    for name in (*FILES, artifact.MANIFEST):
        if (directory / name).is_symlink():
            raise ArtifactError(f"{directory / name}: is a link; a model package holds its files itself")
    return manifest


def verify_logged_model(folder: Path) -> Path:
    """The package inside of a logged model, after every file was read once and compared. Raises ``ArtifactError``."""
    package, found = folder / INSIDE, artifact.verify(folder, LOGGED_MODEL).files
    for name, digest in listed_files(package).files.items():
        if found.get(str(INSIDE / name)) != digest:
            raise ArtifactError(f"{package / name}: altered or damaged since it was written (its SHA-256 is another)")
    return package


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
        artifact.read_manifest(local, LOGGED_MODEL)  # before anything is copied
        fetched = Path(shutil.copytree(local, target / local.name, symlinks=True))
    for path in fetched.rglob("*"):
        if path.is_symlink():
            raise ArtifactError(
                f"{uri}: '{path.relative_to(fetched)}' is a link; a model package holds its files itself"
            )
    return fetched


def read_file(folder_uri: str, name: str, tracking_uri: str) -> bytes | None:
    """The bytes of the file ``name`` in a folder that MLflow keeps, None if it is not there.

    Raises ``TrackingError`` if MLflow does not answer.
    """
    local = local_path(folder_uri)
    if local is not None:
        path = local / name
        return path.read_bytes() if path.is_file() and not path.is_symlink() else None
    with tempfile.TemporaryDirectory(prefix="cddpm-") as folder:
        try:
            return _download(f"{folder_uri.rstrip('/')}/{name}", Path(folder), tracking_uri).read_bytes()
        except ArtifactError:
            return None


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
        status = getattr(getattr(error, "response", None), "status_code", None)  # of a download over HTTP
        if status == 404 or isinstance(error, FileNotFoundError):
            raise ArtifactError(f"{uri}: is not there ({address.one_line(error)})") from None
        raise AwayError(f"{uri}: cannot be fetched: {address.one_line(error)}") from error
    return Path(fetched)
