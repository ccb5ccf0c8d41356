"""The catalogue in a SQLite file, read without MLflow; a file of another schema than ``SCHEMAS`` is left to MLflow's client."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from cddpm.tracking import book_files, database
from cddpm.tracking.catalogue import ModelRecord, RunRecord, VersionRecord

SCHEMAS = frozenset({"dc11669786a5"})
"""Schemas (``alembic_version``) that this reader was tested with: that of MLflow 3.17."""
_WORKSPACE = "default"
_DELETED = "Deleted_Internal"
_AT_ONCE = 500


class CatalogueFile:
    """Opens the file anew for each call, so that it may be used by any thread; never writes."""

    def __init__(self, file: Path) -> None:
        """``file``: of one of ``SCHEMAS``."""
        self._file = file

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
        with database.opened(self._file) as connection:
            return connection.execute(statement, values).fetchall()
