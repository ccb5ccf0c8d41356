"""An evaluation's folder as MLflow shall show it: a parent run with the tables, a child per stage and fold."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cddpm import artifact, events
from cddpm.campaign import is_running
from cddpm.config import ExperimentConfig, parse, recorded, resolve_paths
from cddpm.errors import SearchError
from cddpm.evaluation.fold import RESULT, FoldRun, Outcome, read_outcome
from cddpm.events import Life, Span
from cddpm.search.mirror import fingerprint_tags, finite_only
from cddpm.tracking import names
from cddpm.tracking.mirror import MirroredRun, Status, curve, json_file, noted, present, rows_file, texts
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
    rows = [
        {
            "number": run.number,
            "name": run.name,
            "method": run.method,
            "modality": run.config.data.modality,
            "fold": run.config.data.fold,
            "store": run.place.store.name,
            "images": run.config.training.images,
        }
        for run in runs
    ]
    stores = {f"slices {run.config.data.modality}": run.place.store.name for run in runs}
    artifact.write_json(folder / FILE, asdict(Record(kind, name, recorded(config), stores, rows)))


def read(folder: Path) -> Record | None:
    """What ``keep`` wrote; None if nothing has begun. Raises ``SearchError`` for a damaged file."""
    path = folder / FILE
    if not path.exists():
        return None
    return artifact.read_json(path, Record, "the record of an evaluation", "--resume writes it again", SearchError)


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
        folder, number = self.folder / "runs" / row["name"], int(row["number"])
        outcome = read_outcome(folder) if span.ended is not None else None
        error = span.what.get("error") if outcome is None else None
        ended: Status = "FINISHED" if outcome else "FAILED" if error else "KILLED"
        run = MirroredRun(
            key=names.child_key(key, f"{number:04d}"),
            kind=names.KIND_FOLD,
            name=row["name"],
            campaign=life.identity,
            status="RUNNING" if span.ended is None else ended,
            began=span.began,
            ended=span.ended,
            tags=texts(
                {names.FOLD_RUN: row["name"], names.TRIAL: str(number), **({names.ERROR: error} if error else {})}
            ),
            params=texts({"method": row["method"], "data.modality": row["modality"], "data.fold": row["fold"]}),
            step=int(row["images"]),
        )
        return run if outcome is None else self._measured(run, outcome, row["store"])

    def _measured(self, run: MirroredRun, outcome: Outcome, store: str) -> MirroredRun:
        """``run`` with what its fold has found."""
        made = {stages.ENCODER: outcome.encoder, stages.GUIDE: outcome.guide, stages.CHECKPOINT: outcome.checkpoint}
        used = {"store": store, **{stage: name for stage, name in made.items() if name}}
        history = self._artifacts / stages.CHECKPOINT / (outcome.checkpoint or "-") / checkpoint.HISTORY
        points, flags = curve(checkpoint.timed_history(history), run.began)
        measures = {
            names.metric("test", name, result.dataset): value
            for result in outcome.results
            for name, value in result.measures.items()
        }
        cost = {
            names.SECONDS: sum(outcome.seconds.values()),
            names.GPU_SECONDS: self._stages.gpu_seconds(outcome.number),
        }
        rows = [row for result in outcome.results for row in result.rows]
        tags = {**flags, **fingerprint_tags(used), **self._stages.shares(outcome.number, used)}
        return replace(
            run,
            tags={**run.tags, **texts(tags)},
            points=points,
            metrics=finite_only({names.OBJECTIVE: outcome.validation, **measures, **cost}),
            files=[*present(self.folder / "runs" / run.name, (RESULT,)), rows_file(names.VOLUMES["test"], rows)],
            made_of=used,
        )
