"""The catalogue in a SQLite file, read without MLflow; a file of another schema than ``SCHEMAS`` is left to MLflow's client."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from cddpm.tracking import database
from cddpm.tracking.catalogue import Model, Run, Version

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

    def model(self, name: str) -> Model | None:
        """See ``Catalogue``."""
        if not self._rows("SELECT 1 FROM registered_models WHERE workspace = ? AND name = ?", _WORKSPACE, name):
            return None
        aliases = "SELECT alias, version FROM registered_model_aliases WHERE workspace = ? AND name = ?"
        tags = "SELECT key, value FROM registered_model_tags WHERE workspace = ? AND name = ?"
        return Model(
            {alias: int(number) for alias, number in self._rows(aliases, _WORKSPACE, name)},
            dict(self._rows(tags, _WORKSPACE, name)),
        )

    def models(self) -> list[str]:
        """See ``Catalogue``."""
        wanted = "SELECT name FROM registered_models WHERE workspace = ? ORDER BY name"
        return [str(name) for (name,) in self._rows(wanted, _WORKSPACE)]

    def versions(self, name: str) -> list[Version]:
        """See ``Catalogue``."""
        model = self.model(name)
        entries = (
            "SELECT version, run_id, source, creation_time FROM model_versions "
            "WHERE workspace = ? AND name = ? AND current_stage <> ?"
        )
        tags: dict[int, dict[str, str]] = {}
        wanted = "SELECT version, key, value FROM model_version_tags WHERE workspace = ? AND name = ?"
        for number, key, value in self._rows(wanted, _WORKSPACE, name):
            tags.setdefault(number, {})[key] = value
        return [
            Version.of(
                int(number), run_id or "", source or "", created, tags.get(number, {}), model.aliases if model else {}
            )
            for number, run_id, source, created in self._rows(entries, _WORKSPACE, name, _DELETED)
        ]

    def runs(self, ids: Collection[str]) -> dict[str, Run]:
        """See ``Catalogue``."""
        found: dict[str, Run] = {}
        wanted = sorted(set(ids))
        for start in range(0, len(wanted), _AT_ONCE):
            found |= self._some_runs(wanted[start : start + _AT_ONCE])
        return found

    def location(self, model_id: str) -> str | None:
        """See ``Catalogue``."""
        wanted = "SELECT artifact_location FROM logged_models WHERE model_id = ? AND lifecycle_stage = 'active'"
        rows = self._rows(wanted, model_id)
        return database.here(str(rows[0][0]), self._file) if rows else None

    def _some_runs(self, ids: Sequence[str]) -> dict[str, Run]:
        marks = f"({', '.join('?' * len(ids))})"
        params, tags = (self._pairs(table, marks, ids) for table in ("params", "tags"))
        rows = self._rows(f"SELECT run_uuid, artifact_uri FROM runs WHERE run_uuid IN {marks}", *ids)
        return {
            run: Run(run, database.here(artifacts or "", self._file), params.get(run, {}), tags.get(run, {}))
            for run, artifacts in rows
        }

    def _pairs(self, table: str, marks: str, ids: Sequence[str]) -> dict[str, dict[str, str]]:
        found: dict[str, dict[str, str]] = {}
        for run, key, value in self._rows(f"SELECT run_uuid, key, value FROM {table} WHERE run_uuid IN {marks}", *ids):
            found.setdefault(run, {})[key] = value
        return found

    def _rows(self, statement: str, *values: Any) -> list[Any]:
        with database.opened(self._file) as connection:
            return connection.execute(statement, values).fetchall()
