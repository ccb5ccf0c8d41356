"""All points of one search over scoring settings, kept for this program and for others.

==========================  ===========================================================================================
``scoring_trials.json``     rows as this program reads them back
``scoring_trials.parquet``  one flat table, for pandas or DuckDB
``scoring_table.json``      the same table for MLflow (``mlflow.load_table``, and its pages)
``scoring_study.log``       a journal that ``optuna.load_study`` (and Optuna's dashboard) opens, every point a trial
==========================  ===========================================================================================
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
import pyarrow as pa
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from pyarrow import parquet

from cddpm import artifact
from cddpm.config import ExperimentConfig, active, value_at
from cddpm.search import objectives
from cddpm.search import space as spaces
from cddpm.search.point import Point

ROWS, TABLE, LOGGED = "scoring_trials.json", "scoring_trials.parquet", "scoring_table.json"
STUDY_FILE = "scoring_study.log"
STUDY = "scoring"
_ATTRIBUTES = ("thresholds", "datasets", "seconds", "values")


def record(folder: Path, points: Sequence[Point], config: ExperimentConfig) -> None:
    """Write the four files into ``folder``, each whole or not at all. Raises ``StorageError`` for a full disk."""
    rows = [point.row() for point in points]
    table, sink = columns(rows), pa.BufferOutputStream()
    artifact.write_json(folder / ROWS, rows)
    parquet.write_table(pa.table(table), sink)
    artifact.write_bytes(folder / TABLE, sink.getvalue())
    data = list(zip(*table.values(), strict=True))
    artifact.write_text(folder / LOGGED, json.dumps({"columns": list(table), "data": data}))
    artifact.write_bytes(folder / STUDY_FILE, _journal(points, config))


def columns(rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Flat columns of ``Point.row()``s.

    They are number, objective, values, settings by dotted path, ``threshold/Brats21``, ``Brats21/dice``.

    A setting that has lists or several kinds of values is JSON text throughout; None says that a point does not have it.
    """
    flat = [_flat(row) for row in rows]
    names = dict.fromkeys(name for row in flat for name in row)
    params = {path for row in rows for path in row["params"]}
    return {name: _column(flat, name, name in params) for name in names}


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    plain = {name: row[name] for name in ("number", "objective", "seconds")} | row["values"]
    thresholds = {f"threshold/{name}": value for name, value in row["thresholds"].items()}
    metrics = {f"{name}/{m}": value for name, values in row["datasets"].items() for m, value in values.items()}
    return plain | row["params"] | thresholds | metrics


def _column(flat: Sequence[dict[str, Any]], name: str, setting: bool) -> list[Any]:
    kinds = {type(row[name]) for row in flat if name in row}
    if setting and kinds not in ({str}, {bool}, {int}, {float}, {int, float}):
        return [json.dumps(row[name]) if name in row else None for row in flat]
    number = float if kinds == {int, float} else None
    return [number(row[name]) if number and name in row else row.get(name) for row in flat]


class _Memory(BaseJournalBackend):
    """Journal entries in memory, written to the disk at once: a file would be synchronised for every trial."""

    def __init__(self) -> None:
        self.logs: list[dict[str, Any]] = []

    def read_logs(self, log_number_from: int) -> Any:
        """Entries from a number on."""
        return iter(self.logs[log_number_from:])

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Keep more entries."""
        self.logs += logs


def _journal(points: Sequence[Point], config: ExperimentConfig) -> bytes:
    memory = _Memory()
    directions = [aim.goal for aim in config.search.aims]
    study = optuna.create_study(storage=JournalStorage(memory), study_name=STUDY, directions=directions)
    study.add_trials([_trial(point, config) for point in points])
    return b"".join(json.dumps(entry, separators=(",", ":")).encode() + b"\n" for entry in memory.logs)


def _trial(point: Point, config: ExperimentConfig) -> optuna.trial.FrozenTrial:
    space = config.search.scoring.space
    params = spaces.point(space, point.params or _own(config))
    known = spaces.distributions(space)
    found = {name: value for name, value in asdict(point).items() if name in _ATTRIBUTES}
    values, distributions = objectives.measured(config, point.values), {path: known[path] for path in params}
    return optuna.trial.create_trial(params=params, distributions=distributions, values=values, user_attrs=found)


def _own(config: ExperimentConfig) -> dict[str, Any]:
    """Settings of point 0: the configuration's own values of what is searched beside them."""
    space = config.search.scoring.space
    own = spaces.defaults(space, config)
    return {path: own[path] for path in active(space, lambda asked: value_at(config, asked), own)}
