"""The database file of a lab book, opened without MLflow, in the one schema that MLflow here knows.

MLflow migrates whatever it opens, so a file is looked at before: who only reads leaves every byte as it is, and no file of
another schema is written.
"""

import contextlib
import functools
import importlib.util
import re
import sqlite3
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from cddpm.errors import AwayError, TrackingError
from cddpm.tracking import address

_SCHEMAS = Path("store", "db_migrations", "versions")
_REVISION = re.compile(r"^(revision|down_revision)\s*(?::[^=]*)?=\s*[\"'](\w+)[\"']", re.MULTILINE)
_OURS = frozenset({"experiments", "runs"})
_BUSY_SECONDS = 30.0


def check(file: Path) -> str:
    """Look whether ``file`` is a database of the schema of the MLflow that is installed here; returns that schema.

    Raises ``TrackingError`` that says what to do if it is of another, of another program, empty, or no database.
    """
    address.check_is_there(file)
    address.check_is_database(file)
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
