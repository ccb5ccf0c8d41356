"""Files that an MLflow server keeps and hands out itself (``mlflow-artifacts:/...``), fetched without MLflow's client."""

from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from cddpm.errors import ArtifactError
from cddpm.tracking.server import Server, is_plain


def is_served(uri: str, tracking_uri: str) -> bool:
    """Whether the server at ``tracking_uri`` hands out what lies at ``uri``, and is entered in a plain way."""
    parts = urlsplit(uri)
    return parts.scheme == "mlflow-artifacts" and not parts.netloc and is_plain(tracking_uri)


def fetch(uri: str, target: Path, tracking_uri: str) -> Path:
    """Copy the file or folder at ``uri`` below the folder ``target``; returns the copy.

    Raises ``ArtifactError`` if nothing is there, or if a name climbs out of its folder; ``AwayError`` if the server does not
    answer.
    """
    path = unquote(urlsplit(uri).path).strip("/")
    _check(uri, PurePosixPath(path).parts)
    server, copy = Server(tracking_uri), target / PurePosixPath(path).name
    if not _copied(server, uri, path, copy) and not server.fetch(path, copy):
        raise ArtifactError(f"{uri}: was deleted from MLflow")
    return copy


def _copied(server: Server, uri: str, path: str, copy: Path) -> bool:
    """Copy a folder; False if there is none."""
    entries = (server.asked("GET", "mlflow-artifacts/artifacts", {"path": path}) or {}).get("files", [])
    if not entries:
        return False
    copy.mkdir(parents=True, exist_ok=True)
    for entry in entries:
        name = str(entry["path"])
        _check(uri, (name,))
        inner = f"{path}/{name}"
        if not entry.get("is_dir"):
            if not server.fetch(inner, copy / name):
                raise ArtifactError(f"{uri}: '{name}' was deleted from MLflow meanwhile")
        elif not _copied(server, uri, inner, copy / name):
            (copy / name).mkdir(exist_ok=True)
    return True


def _check(uri: str, names: tuple[str, ...]) -> None:
    if not names or any(name in ("", ".", "..") or "/" in name or "\\" in name for name in names):
        raise ArtifactError(f"{uri}: climbs out of its folder; such an entry of the registry is refused")
