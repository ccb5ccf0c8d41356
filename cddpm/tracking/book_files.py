"""Where the files of a lab book lie: beside its database file, wherever both were moved or copied to.

MLflow writes down whole paths when a run or a model begins. In the database of a lab book that lies on a disk they all are
below its folder ``mlartifacts``, so they are read as what they are now: the same places below the folder beside the database.
"""

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from cddpm.tracking import address, database

FOLDER = "mlartifacts"
_PLACES = {
    "experiments": "artifact_location",
    "runs": "artifact_uri",
    "logged_models": "artifact_location",
    "model_versions": "storage_location",
}


def folder(uri: str) -> Path | None:
    """The folder of the lab book at a tracking URI; None for a server, which has its own."""
    file = address.sqlite_file(uri)
    return file.with_name(FOLDER) if file else None


def here(place: str, file: Path) -> str:
    """A place that was written down in the lab book ``file``, as it is now; another than the book's own stays."""
    parts = urlsplit(place)
    path = PurePosixPath(unquote(parts.path))
    if parts.scheme not in ("", "file") or parts.netloc not in ("", "localhost") or ".." in path.parts:
        return place
    if FOLDER not in path.parts:
        return place
    last = max(index for index, name in enumerate(path.parts) if name == FOLDER)
    now = file.with_name(FOLDER).joinpath(*path.parts[last + 1 :])
    return place if str(now) == str(path) else now.as_uri()


def settle(file: Path) -> None:
    """Write down where the files lie now, if the lab book ``file`` was moved or copied: MLflow itself knows no other way.

    Raises ``TrackingError`` if the database refuses.
    """
    _rewrite(file, lambda place: here(place, file))


def settle_new(file: Path) -> None:
    """Put MLflow's default experiment of a new lab book here too: MLflow puts it where the process was started."""
    _rewrite(file, lambda _: (file.with_name(FOLDER) / "0").as_uri())


def _rewrite(file: Path, now: Callable[[str], str]) -> None:
    """Put ``now(place)`` for every place in the database ``file``.

    The one write to MLflow's tables that MLflow does not make: its client takes a place when an experiment, a run or a model
    begins, and has no call that changes it.
    """
    moved = {table: f"{column} IS NOT NULL AND {column} <> now({column})" for table, column in _PLACES.items()}
    with database.opened(file) as connection:
        connection.create_function("now", 1, now)
        if not any(connection.execute(f"SELECT 1 FROM {table} WHERE {moved[table]}").fetchone() for table in moved):
            return
    with database.opened(file, write=True) as connection:
        connection.create_function("now", 1, now)
        connection.execute("BEGIN IMMEDIATE")
        for table, column in _PLACES.items():
            connection.execute(f"UPDATE {table} SET {column} = now({column}) WHERE {moved[table]}")
        connection.execute("COMMIT")
