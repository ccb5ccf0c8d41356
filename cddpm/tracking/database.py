"""The database file of a lab book, opened without MLflow, and the files beside it.

MLflow migrates whatever it opens, so a file is looked at before, in the one schema that MLflow here knows: who only reads
leaves every byte as it is, and no file of another schema is written.

MLflow writes down whole paths when a run or a model begins. In a lab book that lies on a disk they all are below its folder
``mlartifacts``, so they are read as what they are now, wherever both were moved or copied to: the same places below the folder
beside the database.
"""

import contextlib
import functools
import importlib.util
import re
import sqlite3
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from cddpm.errors import AwayError, TrackingError
from cddpm.tracking import address

FOLDER = "mlartifacts"
_PLACES = {
    "experiments": "artifact_location",
    "runs": "artifact_uri",
    "logged_models": "artifact_location",
    "model_versions": "storage_location",
}

_SCHEMAS = Path("store", "db_migrations", "versions")
_REVISION = re.compile(r"^(revision|down_revision)\s*(?::[^=]*)?=\s*[\"'](\w+)[\"']", re.MULTILINE)
_OURS = frozenset({"experiments", "runs"})
_MAGIC = b"SQLite format 3\0"
_BUSY_SECONDS = 30.0


def check(file: Path) -> str:
    """Look whether ``file`` is a database of the schema of the MLflow that is installed here; returns that schema.

    Raises ``TrackingError`` that says what to do if it is of another, of another program, empty, or no database.
    """
    _check_is_database(file)
    with opened(file) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        known = "alembic_version" in tables
        found = (
            [str(name) for (name,) in connection.execute("SELECT version_num FROM alembic_version")] if known else []
        )
    newest, older = _schemas()
    if found == [newest]:
        return newest
    uri, mlflow = address.file_uri(file), f"MLflow {version('mlflow')}"
    if len(found) == 1 and found[0] in older:
        raise TrackingError(
            f"{file}: is of an earlier MLflow (schema {found[0]}, {mlflow} here has {newest}), and was left as it is. Keep a "
            f"copy of it, then run `mlflow db upgrade {uri}`"
        )
    if len(found) == 1 and tables >= _OURS:
        raise TrackingError(
            f"{file}: is of another MLflow, probably a newer one (schema {found[0]} is not known to {mlflow} here), and was "
            "left as it is. Install the MLflow that wrote it (`pip install --upgrade mlflow`), or let that one serve it "
            f"(`mlflow server --backend-store-uri {uri}`) and give its address (--tracking-uri http://HOST:PORT)"
        )
    what = "holds no tables" if not tables else "holds tables of another program"
    raise TrackingError(
        f"{file}: is no lab book of MLflow ({what}), and was left as it is. Move it away and a new one is made by the next "
        "sweep, or name another (--tracking-uri, tracking.uri)"
    )


def _check_is_database(file: Path) -> None:
    """Raises ``TrackingError`` if it does not exist or holds something else, which MLflow would try for minutes to open."""
    if not file.exists():
        raise TrackingError(
            f"{file}: no lab book here. Run a sweep or a training first (it makes one in its output folder), or point to "
            "another with --tracking-uri or MLFLOW_TRACKING_URI (sqlite:////absolute/path/mlflow.db or http://host:5000)"
        )
    begin = b""
    if file.is_file():
        with file.open("rb") as stream:
            begin = stream.read(len(_MAGIC))
    if begin != _MAGIC:
        found = "empty" if file.is_file() and not begin else "not a SQLite database"
        raise TrackingError(f"{file}: is {found}; move it away, or set tracking.uri (--tracking-uri) to another")


@contextlib.contextmanager
def opened(file: Path, write: bool = False) -> Iterator[sqlite3.Connection]:
    """A connection to the file, which must be there. Raises ``TrackingError`` for what goes wrong in the block too.

    Without ``write`` no byte of it is changed, not even by moving entries out of its write-ahead log; but what a writer that
    died has left half done is undone, for else nobody could read it.
    """
    cut_off = file.with_name(f"{file.name}-journal").exists()
    mode = "rw" if write or cut_off else "ro"
    with _told(file):
        connection = sqlite3.connect(
            f"{file.as_uri()}?mode={mode}", uri=True, timeout=_BUSY_SECONDS, isolation_level=None
        )
        with contextlib.closing(connection):
            yield connection


@contextlib.contextmanager
def _told(file: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        if "locked" in str(error) or "busy" in str(error):
            raise AwayError(
                f"{file}: another process has been writing for {_BUSY_SECONDS:.0f} s; try again when it is done"
            ) from error
        raise TrackingError(f"{file}: the database refuses: {address.one_line(error)}") from error
    except sqlite3.DatabaseError as error:
        raise TrackingError(f"{file}: the database is damaged: {address.one_line(error)}") from error


@functools.cache
def _schemas() -> tuple[str, frozenset[str]]:
    """The newest schema of the MLflow that is installed, and those before it: read, for its import takes over a second."""
    found = importlib.util.find_spec("mlflow")
    places = list(found.submodule_search_locations or ()) if found else []
    files = [file for place in places for file in (Path(place) / _SCHEMAS).glob("*.py")]
    pairs = [dict(_REVISION.findall(file.read_text(encoding="utf-8"))) for file in files]
    revisions = {pair["revision"] for pair in pairs if "revision" in pair}
    before = {pair["down_revision"] for pair in pairs if "down_revision" in pair}
    newest = revisions - before
    if len(newest) != 1:
        raise TrackingError(
            f"MLflow {version('mlflow')}: its schemas cannot be told apart ({', '.join(sorted(newest)) or 'none found'}); "
            "install it again (`pip install --force-reinstall mlflow`)"
        )
    return newest.pop(), frozenset(before)


# The files beside it


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
    with opened(file) as connection:
        connection.create_function("now", 1, now)
        if not any(connection.execute(f"SELECT 1 FROM {table} WHERE {moved[table]}").fetchone() for table in moved):
            return
    with opened(file, write=True) as connection:
        connection.create_function("now", 1, now)
        connection.execute("BEGIN IMMEDIATE")
        for table, column in _PLACES.items():
            connection.execute(f"UPDATE {table} SET {column} = now({column}) WHERE {moved[table]}")
        connection.execute("COMMIT")
