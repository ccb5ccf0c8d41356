"""What an evaluation writes into the lab book: one parent run with the tables, a child per method, modality and fold."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from cddpm.config import ExperimentConfig, recorded
from cddpm.data.store import SliceStore
from cddpm.errors import StoppedError
from cddpm.evaluation.fold import RESULT, FoldRun, Outcome
from cddpm.evaluation.plan import FOLDER
from cddpm.search.lab import TEST_VOLUMES
from cddpm.tracking import names
from cddpm.tracking.runs import LabBook
from cddpm.tracking.stage_runs import StageRuns
from cddpm.tracking.surroundings import noted, surroundings
from cddpm.training import checkpoint, stages


@dataclass
class Notebook:
    """The lab book of one evaluation; a context manager, used by the driver alone."""

    runs: dict[int, FoldRun]
    book: LabBook
    run: str
    stages: StageRuns
    _keys: dict[int, str] = field(default_factory=dict)

    @classmethod
    def open(cls, config: ExperimentConfig, kind: str, name: str, runs: Sequence[FoldRun]) -> Self:
        """Open the lab book and the evaluation's run. Raises as ``LabBook.open``."""
        book = LabBook.open(config.tracking, config.output_dir, config.output_dir / "spool")
        key = book.parent(f"{kind}-{name}", recorded(config), surroundings(), names.KIND_EVALUATION, noted(config))
        for store, modality in {(r.place.store, r.config.data.modality): None for r in runs}:
            fingerprint = SliceStore.open(store, verify=False).fingerprint
            book.log_dataset_inputs(key, fingerprint, name=f"slices {modality}")
        folder = config.output_dir / FOLDER / name
        return cls(
            {r.number: r for r in runs}, book, key, StageRuns(book, key, folder, config.output_dir / "artifacts")
        )

    @property
    def uri(self) -> str:
        """MLflow's tracking URI."""
        return self.book.uri

    @property
    def away(self) -> str | None:
        """What to tell the person if MLflow did not answer at the start."""
        return self.book.notice

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is not None:
            self.book.close(self.run, "KILLED" if kind is StoppedError else "FAILED")
        self.book.end(timeout_seconds=5)

    def started(self, number: int) -> None:
        """A run starts, or is continued."""
        run = self.runs[number]
        data = run.config.data
        params = {"method": run.method, "data.modality": data.modality, "data.fold": data.fold}
        tags = {names.FOLD_RUN: run.name, names.TRIAL: str(number)}
        self._keys[number] = self.book.child(self.run, f"{number:04d}", names.KIND_FOLD, run.name, params, tags)

    def ended(self, outcome: Outcome) -> None:
        """Enter what a run found: curves of its training, measures on test, and its files."""
        run, key = self.runs[outcome.number], self._keys[outcome.number]
        if outcome.checkpoint:
            history = run.place.artifacts / stages.CHECKPOINT / outcome.checkpoint / checkpoint.HISTORY
            self.book.log_history(key, checkpoint.read_history(history))
            self.book.set_tags(key, _fingerprints(outcome))
        used = {
            "store": run.place.store.name,
            stages.ENCODER: outcome.encoder,
            stages.GUIDE: outcome.guide,
            stages.CHECKPOINT: outcome.checkpoint,
        }
        self.stages.link(key, outcome.number, used)
        cost = {
            names.SECONDS: sum(outcome.seconds.values()),
            names.GPU_SECONDS: self.stages.gpu_seconds(outcome.number),
        }
        step = run.config.training.images
        self.book.log_metrics(key, {names.OBJECTIVE: outcome.validation, **_measures(outcome), **cost}, step)
        self.book.log_artifact(key, run.folder / RESULT)
        self.book.log_rows(key, [row for result in outcome.results for row in result.rows], TEST_VOLUMES)
        self.book.close(key, "FINISHED")

    def failed(self, number: int, why: str) -> None:
        """Enter that a run failed."""
        self.book.set_tags(self._keys[number], {names.ERROR: why})
        self.book.close(self._keys[number], "FAILED")

    def finish(self, outcomes: Sequence[Outcome], files: Sequence[Path]) -> int:
        """Keep the tables; returns how many entries MLflow does not have yet."""
        for file in files:
            self.book.log_artifact(self.run, file)
        self.book.close(self.run, "FINISHED")
        return self.book.flush(timeout_seconds=60)


def _fingerprints(outcome: Outcome) -> dict[str, str]:
    found = {
        names.FINGERPRINT_CHECKPOINT: outcome.checkpoint,
        names.FINGERPRINT_ENCODER: outcome.encoder,
        names.FINGERPRINT_GUIDE: outcome.guide,
    }
    return {tag: name for tag, name in found.items() if name}


def _measures(outcome: Outcome) -> dict[str, Any]:
    return {
        names.metric("test", name, result.dataset): value
        for result in outcome.results
        for name, value in result.measures.items()
        if value is not None
    }
