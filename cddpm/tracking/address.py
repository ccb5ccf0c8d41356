"""Where a lab book is: tracking URIs, and the database file behind one. No MLflow here: it takes over a second to import."""

from pathlib import Path

from cddpm.errors import TrackingError

_SQLITE = "sqlite:///"
_SQLITE_MAGIC = b"SQLite format 3\0"


def default_uri(output_dir: Path) -> str:
    """The embedded lab book of an output folder."""
    return file_uri(output_dir.resolve() / "mlflow.db")


def file_uri(file: Path) -> str:
    """The tracking URI of a database file."""
    return f"{_SQLITE}{file}"


def sqlite_file(uri: str) -> Path | None:
    """The database file of a SQLite URI, else None."""
    if not uri.startswith(_SQLITE):
        return None
    return Path(uri.removeprefix(_SQLITE).split("?")[0]).resolve()


def check_is_there(file: Path) -> None:
    """Raises ``TrackingError`` if the database ``file`` does not exist."""
    if not file.is_file():
        raise TrackingError(
            f"{file}: no lab book here. Run a sweep or a training first (it makes one in its output folder), or point to "
            "another with --tracking-uri or MLFLOW_TRACKING_URI (sqlite:////absolute/path/mlflow.db or http://host:5000)"
        )


def check_is_database(file: Path) -> None:
    """Raises ``TrackingError`` if ``file`` holds something else; MLflow tries for minutes to open what is no database."""
    if not file.exists() or (file.is_file() and file.stat().st_size == 0):
        return
    if not file.is_file() or not _begins_with(file, _SQLITE_MAGIC):
        raise TrackingError(f"{file}: is not a SQLite database; move it away, or set tracking.uri to another")


def one_line(error: BaseException) -> str:
    """The message of an error as one line of at most 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


def _begins_with(file: Path, magic: bytes) -> bool:
    with file.open("rb") as stream:
        return stream.read(len(magic)) == magic
