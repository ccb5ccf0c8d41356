"""An evaluation's folder as MLflow shall show it: a parent run with the tables, a child per stage and fold."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cddpm import artifact, events
from cddpm.campaign import is_running
from cddpm.config import ExperimentConfig, parse, recorded, resolve_paths
from cddpm.errors import SearchError
from cddpm.evaluation.fold import RESULT, FoldRun, Outcome, read_outcome
from cddpm.events import Life, Span
from cddpm.tracking import names
from cddpm.tracking.mirror import MirroredRun, Status, curve, finite, json_file, noted, present, rows_file, texts
from cddpm.tracking.stage_runs import StageRuns
from cddpm.training import checkpoint, stages

FILE = "evaluation.json"
_TABLES = ("evaluation.md", "evaluation.csv", "benchmark.md", "benchmark.csv", "volumes.csv", "shifts.csv")


@dataclass(frozen=True)
class Record:
    """What an evaluation is about, as of its last start: ``evaluation.json``."""

    kind: str
    name: str
    config: dict[str, Any]
    """Of its first experiment."""
    stores: dict[str, str]
    """Name of a data set -> fingerprint of its slice store."""
    runs: list[dict[str, Any]]
    """``number, name, method, modality, fold, store, images`` of each."""


def keep(folder: Path, kind: str, name: str, config: ExperimentConfig, runs: Sequence[FoldRun]) -> None:
    """Write the record down. Raises ``StorageError`` if the disk refuses."""
    parsed = [(run, run.config) for run in runs]
    record = Record(
        kind,
        name,
        recorded(config),
        {f"slices {c.data.modality}": run.place.store.name for run, c in parsed},
        [
            {
                "number": run.number,
                "name": run.name,
                "method": run.method,
                "modality": c.data.modality,
                "fold": c.data.fold,
                "store": run.place.store.name,
                "images": c.training.images,
            }
            for run, c in parsed
        ],
    )
    artifact.write_json(folder / FILE, asdict(record))


def read(folder: Path) -> Record | None:
    """What ``keep`` wrote; None if nothing has begun. Raises ``SearchError`` for a damaged file."""
    path = folder / FILE
    if not path.exists():
        return None
    try:
        return Record(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise SearchError(f"{path}: not the record of an evaluation ({error}); --resume writes it again") from error


class EvaluationMirror:
    """The runs of one evaluation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._artifacts = folder.resolve().parents[1] / "artifacts"
        self._stages = StageRuns(folder, self._artifacts)

    def runs(self) -> list[MirroredRun]:
        """All of them, parents first; none if it has not begun. Raises ``SearchError`` for a damaged file."""
        life, record = events.life(self.folder, is_running(self.folder)), read(self.folder)
        if life is None or record is None:
            return []
        key = f"{record.kind}-{record.name}"
        made = self._stages.runs(key, life.identity)
        folds = [self._fold(key, life, span, row) for row in record.runs if (span := life.trials.get(row["number"]))]
        return [self._parent(key, record, life), *made, *folds]

    def config(self) -> ExperimentConfig | None:
        """Of its first experiment, with places as they are now; None if it has not begun."""
        record = read(self.folder)
        if record is None:
            return None
        return resolve_paths(parse(record.config, str(self.folder / FILE)), self.folder.resolve().parents[2])

    def _parent(self, key: str, record: Record, life: Life) -> MirroredRun:
        stores = record.stores.values()
        config = parse(record.config, str(self.folder / FILE))
        return MirroredRun(
            key=key,
            kind=names.KIND_EVALUATION,
            name=key,
            campaign=life.identity,
            status=life.status,
            began=life.whole.began,
            ended=life.whole.ended,
            tags=texts({**life.whole.what.get("surroundings", {}), names.FINGERPRINT_STORE: next(iter(stores), "")}),
            params=texts(noted(config)),
            files=[json_file("config.json", record.config), *present(self.folder, _TABLES)],
            data=record.stores,
        )

    def _fold(self, key: str, life: Life, span: Span, row: Mapping[str, Any]) -> MirroredRun:
        folder = self.folder / "runs" / row["name"]
        outcome = read_outcome(folder) if span.ended is not None else None
        error = span.what.get("error") if outcome is None else None
        ended: Status = "FINISHED" if outcome else "FAILED" if error else "KILLED"
        number = int(row["number"])
        tags = {names.FOLD_RUN: row["name"], names.TRIAL: str(number), **({names.ERROR: error} if error else {})}
        points, flags = curve(self._history(outcome), span.began)
        used = _used(outcome, row["store"]) if outcome else {}
        return MirroredRun(
            key=names.child_key(key, f"{number:04d}"),
            kind=names.KIND_FOLD,
            name=row["name"],
            campaign=life.identity,
            status="RUNNING" if span.ended is None else ended,
            began=span.began,
            ended=span.ended,
            tags=texts({**tags, **flags, **_fingerprints(outcome), **self._shares(number, used)}),
            params=texts({"method": row["method"], "data.modality": row["modality"], "data.fold": row["fold"]}),
            points=points,
            metrics=self._metrics(outcome),
            step=int(row["images"]),
            files=[*present(folder, (RESULT,)), _volumes(outcome)] if outcome else [],
            made_of=used,
        )

    def _history(self, outcome: Outcome | None) -> list[dict[str, float]]:
        if outcome is None or not outcome.checkpoint:
            return []
        return checkpoint.timed_history(self._artifacts / stages.CHECKPOINT / outcome.checkpoint / checkpoint.HISTORY)

    def _shares(self, number: int, used: Mapping[str, str]) -> dict[str, str]:
        return self._stages.shares(number, used) if used else {}

    def _metrics(self, outcome: Outcome | None) -> dict[str, float]:
        if outcome is None:
            return {}
        measures = {
            names.metric("test", name, result.dataset): value
            for result in outcome.results
            for name, value in result.measures.items()
        }
        cost = {
            names.SECONDS: sum(outcome.seconds.values()),
            names.GPU_SECONDS: self._stages.gpu_seconds(outcome.number),
        }
        every = {names.OBJECTIVE: outcome.validation, **measures, **cost}
        return {name: number for name, value in every.items() if (number := finite(value)) is not None}


def _volumes(outcome: Outcome) -> Any:
    return rows_file(names.VOLUMES["test"], [row for result in outcome.results for row in result.rows])


def _used(outcome: Outcome, store: str) -> dict[str, str]:
    found = {
        "store": store,
        stages.ENCODER: outcome.encoder,
        stages.GUIDE: outcome.guide,
        stages.CHECKPOINT: outcome.checkpoint,
    }
    return {stage: name for stage, name in found.items() if name}


def _fingerprints(outcome: Outcome | None) -> dict[str, str]:
    if outcome is None:
        return {}
    found = {
        names.FINGERPRINT_CHECKPOINT: outcome.checkpoint,
        names.FINGERPRINT_ENCODER: outcome.encoder,
        names.FINGERPRINT_GUIDE: outcome.guide,
    }
    return {tag: name for tag, name in found.items() if name}
