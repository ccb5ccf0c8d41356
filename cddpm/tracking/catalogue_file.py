"""The catalogue in a SQLite file, read and written without MLflow, in the tables of its schema.

Only tables and columns that are looked for when the file is opened are touched; a file without them is left to MLflow.
"""

import contextlib
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from cddpm.tracking import book_files, database
from cddpm.tracking.catalogue import ModelRecord, RunRecord, VersionRecord

_COLUMNS = {
    "registered_models": {"name", "workspace"},
    "registered_model_tags": {"name", "key", "value", "workspace"},
    "registered_model_aliases": {"name", "alias", "version", "workspace"},
    "model_versions": {"name", "version", "run_id", "source", "creation_time", "current_stage", "workspace"},
    "model_version_tags": {"name", "version", "key", "value", "workspace"},
    "logged_models": {"model_id", "artifact_location", "lifecycle_stage"},
    "runs": {"run_uuid", "name", "status", "artifact_uri"},
    "tags": {"run_uuid", "key", "value"},
    "params": {"run_uuid", "key", "value"},
    "latest_metrics": {"run_uuid", "key", "value", "is_nan"},
}
_WORKSPACE = "default"
_DELETED = "Deleted_Internal"
_AT_ONCE = 500


class CatalogueFile:
    """Opens the file anew for each call, so that it may be used by any thread; ``exclusive`` is one transaction."""

    contested = False

    def __init__(self, file: Path) -> None:
        """Raises ``TrackingError`` if ``file`` is not there or no lab book of the MLflow that is installed (``database``)."""
        database.check(file)
        self._file = file
        self._held: sqlite3.Connection | None = None

    @property
    def readable(self) -> bool:
        """Whether the file has the tables that this class knows."""
        with database.opened(self._file) as connection:
            return all(wanted <= _columns(connection, table) for table, wanted in _COLUMNS.items())

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """All or nothing: an exception, or the end of this process, leaves the file as it was."""
        with database.opened(self._file, write=True) as connection:
            connection.execute("BEGIN IMMEDIATE")
            self._held = connection
            try:
                yield
                connection.execute("COMMIT")
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            finally:
                self._held = None

    def model(self, name: str) -> ModelRecord | None:
        """See ``Catalogue``."""
        if not self._rows("SELECT 1 FROM registered_models WHERE workspace = ? AND name = ?", _WORKSPACE, name):
            return None
        aliases = "SELECT alias, version FROM registered_model_aliases WHERE workspace = ? AND name = ?"
        tags = "SELECT key, value FROM registered_model_tags WHERE workspace = ? AND name = ?"
        return ModelRecord(
            {alias: int(number) for alias, number in self._rows(aliases, _WORKSPACE, name)},
            dict(self._rows(tags, _WORKSPACE, name)),
        )

    def models(self) -> list[str]:
        """See ``Catalogue``."""
        wanted = "SELECT name FROM registered_models WHERE workspace = ? ORDER BY name"
        return [str(name) for (name,) in self._rows(wanted, _WORKSPACE)]

    def versions(self, name: str) -> list[VersionRecord]:
        """See ``Catalogue``."""
        entries = (
            "SELECT version, run_id, source, creation_time FROM model_versions "
            "WHERE workspace = ? AND name = ? AND current_stage <> ?"
        )
        tags: dict[int, dict[str, str]] = {}
        wanted = "SELECT version, key, value FROM model_version_tags WHERE workspace = ? AND name = ?"
        for number, key, value in self._rows(wanted, _WORKSPACE, name):
            tags.setdefault(number, {})[key] = value
        return [
            VersionRecord(int(number), run_id or "", source or "", created, tags.get(number, {}))
            for number, run_id, source, created in self._rows(entries, _WORKSPACE, name, _DELETED)
        ]

    def runs(self, ids: Collection[str]) -> dict[str, RunRecord]:
        """See ``Catalogue``."""
        found: dict[str, RunRecord] = {}
        wanted = sorted(set(ids))
        for start in range(0, len(wanted), _AT_ONCE):
            found |= self._some_runs(wanted[start : start + _AT_ONCE])
        return found

    def location(self, model_id: str) -> str | None:
        """See ``Catalogue``."""
        wanted = "SELECT artifact_location FROM logged_models WHERE model_id = ? AND lifecycle_stage = 'active'"
        rows = self._rows(wanted, model_id)
        return book_files.here(str(rows[0][0]), self._file) if rows else None

    def tag_model(self, name: str, key: str, value: str) -> None:
        """See ``Catalogue``."""
        self._write("INSERT OR REPLACE INTO registered_model_tags (workspace, name, key, value) VALUES (?, ?, ?, ?)",
                    _WORKSPACE, name, key, value)  # fmt: skip

    def tag_version(self, name: str, number: int, key: str, value: str | None) -> None:
        """See ``Catalogue``."""
        place = (_WORKSPACE, name, number, key)
        if value is None:
            where = "WHERE workspace = ? AND name = ? AND version = ? AND key = ?"
            self._write(f"DELETE FROM model_version_tags {where}", *place)
        else:
            columns = "(workspace, name, version, key, value)"
            self._write(f"INSERT OR REPLACE INTO model_version_tags {columns} VALUES (?, ?, ?, ?, ?)", *place, value)

    def set_alias(self, name: str, alias: str, number: int) -> None:
        """See ``Catalogue``."""
        columns = "(workspace, name, alias, version)"
        self._write(
            f"INSERT OR REPLACE INTO registered_model_aliases {columns} VALUES (?, ?, ?, ?)",
            *(_WORKSPACE, name, alias, number),
        )

    def _some_runs(self, ids: Sequence[str]) -> dict[str, RunRecord]:
        marks = f"({', '.join('?' * len(ids))})"
        params, tags = (
            self._pairs("key, value FROM params", marks, ids),
            self._pairs("key, value FROM tags", marks, ids),
        )
        metrics = self._pairs("key, CASE is_nan WHEN 1 THEN NULL ELSE value END FROM latest_metrics", marks, ids)
        rows = self._rows(f"SELECT run_uuid, name, status, artifact_uri FROM runs WHERE run_uuid IN {marks}", *ids)
        return {
            run: RunRecord(
                run,
                name or "",
                status,
                book_files.here(artifacts or "", self._file),
                params.get(run, {}),
                tags.get(run, {}),
                {key: float("nan") if value is None else value for key, value in metrics.get(run, {}).items()},
            )
            for run, name, status, artifacts in rows
        }

    def _pairs(self, what: str, marks: str, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for run, key, value in self._rows(f"SELECT run_uuid, {what} WHERE run_uuid IN {marks}", *ids):
            found.setdefault(run, {})[key] = value
        return found

    def _rows(self, statement: str, *values: Any) -> list[Any]:
        with self._open(write=False) as connection:
            return connection.execute(statement, values).fetchall()

    def _write(self, statement: str, *values: Any) -> None:
        with self._open(write=True) as connection:
            connection.execute(statement, values)

    @contextlib.contextmanager
    def _open(self, write: bool) -> Iterator[sqlite3.Connection]:
        if self._held is not None:
            yield self._held
            return
        with database.opened(self._file, write) as connection:
            yield connection


def _columns(connection: sqlite3.Connection, table: str) -> set[str]:
    return {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
