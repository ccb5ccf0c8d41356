"""Reading leaves every byte of a database alone, and one of another schema is refused in one line before anything is written."""

import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import built_sweep
import pytest
import sqlalchemy
from mlflow.store.db.utils import _get_latest_schema_revision
from mlflow.store.tracking.dbmodels.initial_models import Base
from registered import begun_lab

from cddpm import publishing
from cddpm.config import TrackingConfig
from cddpm.errors import TrackingError
from cddpm.predict import source
from cddpm.tracking import connection
from cddpm.tracking import database as database_file
from cddpm.tracking.address import file_uri
from cddpm.tracking.lineage import registered
from cddpm.tracking.query import settings_of
from cddpm.tracking.registry import Registry


def _sync(file: Path) -> None:
    folder = built_sweep.begin(built_sweep.config(file.parent, "late"))
    if fault := publishing.publish(folder).fault:
        raise TrackingError(fault)


def _opened(file: Path) -> Registry:
    return Registry.open(file_uri(file))


_READING: dict[str, Callable[[Path], object]] = {
    "list": lambda file: _opened(file).versions(),
    "best": lambda file: _opened(file).best("dice"),
    "show": lambda file: _opened(file).promotions(),
    "settings": lambda file: settings_of([_opened(file).find("1")], _opened(file)._catalogue),
    "verify": lambda file: _opened(file).verify(_opened(file).find("1")),
    "pull": lambda file: _opened(file).pull("1", file.parent / "pulled"),
    "lineage": lambda file: registered(file_uri(file)),
    "predict": lambda file: source._of_registry("1", file_uri(file), "cddpm"),
    "look": lambda file: connection.connect(file_uri(file), create=False).search_experiments(),
}
_WRITING: dict[str, Callable[[Path], object]] = {
    "promote": lambda file: _opened(file).promote("1", "champion", "why"),
    "archive": lambda file: _opened(file).archive("1", "why"),
    "connect": lambda file: connection.connect(file_uri(file)),
    "sweep": lambda file: begun_lab(file.parent, TrackingConfig()),
    "sync": _sync,
}


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A database with the first tables of MLflow only, and the schema number of MLflow 2.9."""
    file = tmp_path_factory.mktemp("earlier") / "mlflow.db"
    engine = sqlalchemy.create_engine(file_uri(file))
    Base.metadata.create_all(engine)
    engine.dispose()
    _sql(file, "CREATE TABLE alembic_version (version_num)", "INSERT INTO alembic_version VALUES ('acf3f17fdcc7')")
    return file.read_bytes()


def _sql(file: Path, *statements: str) -> None:
    with closing(sqlite3.connect(file)) as connected:
        for statement in statements:
            connected.execute(statement)
        connected.commit()


_OTHERS = {
    "earlier": r"is of an earlier MLflow .*run `mlflow db upgrade sqlite:////.*mlflow\.db`",
    "earlier, by its stamp": r"is of an earlier MLflow .*run `mlflow db upgrade sqlite:////.*mlflow\.db`",
    "newer": r"is of another MLflow, probably a newer one .*pip install --upgrade mlflow",
    "another program's": r"is no lab book of MLflow \(holds tables of another program\)",
    "another program's, with Alembic": r"is no lab book of MLflow \(holds tables of another program\)",
    "without tables": r"is no lab book of MLflow \(holds no tables\)",
    "empty": r"is empty; move it away",
    "no database": r"is not a SQLite database; move it away",
}


def _other(kind: str, file: Path, ours: Path, earlier: bytes) -> None:
    match kind:
        case "earlier":
            file.write_bytes(earlier)
        case "earlier, by its stamp" | "newer":
            file.write_bytes(ours.read_bytes())
            stamp = "acf3f17fdcc7" if "stamp" in kind else "fffffffffff1"
            _sql(file, f"UPDATE alembic_version SET version_num = '{stamp}'")
        case "another program's":
            _sql(file, "CREATE TABLE notes (text)", "INSERT INTO notes VALUES ('dear diary')")
        case "another program's, with Alembic":
            _sql(file, "CREATE TABLE alembic_version (version_num)", "INSERT INTO alembic_version VALUES ('abc')")
        case "without tables":
            _sql(file, "CREATE TABLE t (x)", "DROP TABLE t")
        case "empty":
            file.touch()
        case _:
            file.write_text("a diary\n")


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("mlflow.db*")}


@pytest.mark.slow
@pytest.mark.parametrize("kind", _OTHERS)
@pytest.mark.parametrize("command", [*_READING, *_WRITING])
def test_another_schema_is_refused_and_left_alone(
    kind: str, command: str, tmp_path: Path, database: Path, earlier: bytes
) -> None:
    file = tmp_path / "mlflow.db"
    _other(kind, file, database, earlier)
    before = _bytes(tmp_path)
    with pytest.raises(TrackingError, match=_OTHERS[kind]) as caught:
        (_READING | _WRITING)[command](file)
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)
    assert _bytes(tmp_path) == before
    assert not list(tmp_path.glob("**/mlartifacts/*"))


@pytest.mark.slow
@pytest.mark.parametrize("journal", ["delete", "wal", "wal, with entries"])
@pytest.mark.parametrize("command", _READING)
def test_reading_leaves_every_byte(command: str, journal: str, three_versions: Path) -> None:
    writer = sqlite3.connect(three_versions)
    writer.execute(f"PRAGMA journal_mode = {journal.split(',')[0]}")
    if "entries" in journal:
        writer.execute("PRAGMA wal_autocheckpoint = 0")
        writer.execute("UPDATE experiments SET last_update_time = 1")
        writer.commit()
        kept = {file: file.read_bytes() for file in three_versions.parent.glob("mlflow.db*")}
        writer.close()
        for file, content in kept.items():
            if not file.name.endswith("-shm"):  # as after a crash
                file.write_bytes(content)
    writer.close()
    before = three_versions.read_bytes()
    _READING[command](three_versions)
    assert three_versions.read_bytes() == before


def test_what_a_dead_writer_left_half_done_is_undone(three_versions: Path) -> None:
    file, whole = three_versions, three_versions.read_bytes()
    with closing(sqlite3.connect(file)) as writer:
        writer.execute("PRAGMA cache_size = 1")
        writer.execute("UPDATE model_version_tags SET value = '{}'")
        writer.execute("UPDATE tags SET value = 'x'")
        half = {path: path.read_bytes() for path in (file, file.with_name("mlflow.db-journal"))}
        writer.rollback()
    for path, content in half.items():
        path.write_bytes(content)
    assert [version.number for version in _opened(file).versions()] == [3, 2, 1]
    assert file.read_bytes() == whole


def test_the_schema_is_that_of_the_installed_mlflow() -> None:
    newest, older = database_file._schemas()
    assert newest == _get_latest_schema_revision()
    assert "acf3f17fdcc7" in older
    assert newest not in older


def test_one_module_alone_writes_to_mlflow_s_tables() -> None:
    writes = re.compile(r"write=True|\b(UPDATE \{?\w+\}? SET|INSERT|REPLACE INTO|DELETE FROM|ALTER TABLE)\b")
    files = Path(database_file.__file__).parents[1].rglob("*.py")
    assert [file.name for file in files if writes.search(file.read_text())] == ["database.py"]


def test_a_lab_book_appears_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(uri: str) -> None:
        Path(uri.removeprefix("sqlite:///")).write_bytes(b"SQLite format 3\0 half")
        raise KeyboardInterrupt

    monkeypatch.setattr(connection, "_opened", half)
    with pytest.raises(KeyboardInterrupt):
        connection.connect(file_uri(tmp_path / "mlflow.db"))
    assert [path.name for path in tmp_path.iterdir()] == [".mlflow.db.lock"]
