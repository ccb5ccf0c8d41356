"""One method on one cohort and fold: train (or find), fix the operating point on validation, measure on test.

A run's folder is ``<campaign>/runs/<method>-<modality>-fold<k>``. Its ``result.json`` appears whole, once; a run that has one
is never made again.
"""

import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from cddpm import artifact
from cddpm.config import ExperimentConfig, ScoringConfig, recorded, to_dict
from cddpm.data.store import SliceStore
from cddpm.errors import SearchError
from cddpm.evaluation.shift import UNSHIFTED, Shift, shifted
from cddpm.published import scoring as reference
from cddpm.reconstruct.cohort import Cohort
from cddpm.scoring.measures import Measured, measure
from cddpm.scoring.score import HEALTHY, Scorer
from cddpm.scoring.score_book import ScoreBook
from cddpm.scoring.statistics import FoldResult
from cddpm.search import scoring_search
from cddpm.search.point import Point, scoring_with
from cddpm.search.scoring_search import point_workers
from cddpm.training import stages, worker, worker_group
from cddpm.training.loop import Interrupted

RESULT, CONFIG, REFERENCE = "result.json", "config.json", "reference_metrics.json"
THREADS = 2
"""Volumes that are scored at once."""


@dataclass(frozen=True)
class FoldRun:
    """What is to be done; pickles. ``config.data.fold`` says which fold."""

    number: int
    method: str
    config: ExperimentConfig
    campaign: Path
    place: stages.Place
    shifts: tuple[Shift, ...]
    gpus: float

    @property
    def name(self) -> str:
        """Of its folder: ``cddpm-pretrained-t2-fold0``."""
        data = self.config.data
        words = re.sub(r"[^a-z0-9]+", "-", self.method.lower()).strip("-")
        return f"{words}-{data.modality}-fold{data.fold}"

    @property
    def folder(self) -> Path:
        """Where it keeps its files."""
        return self.campaign / "runs" / self.name

    @property
    def stop_file(self) -> Path:
        """Asks all runs to save and end."""
        return self.campaign / "stop"


@dataclass(frozen=True)
class Outcome:
    """What a finished run found. ``results`` has one entry per unhealthy data set, and one for the healthy test scans."""

    number: int
    name: str
    method: str
    modality: str
    fold: int
    results: list[FoldResult]
    shifts: list[dict[str, Any]]
    """Measures per data set under each domain shift, with the divergence between input and reconstruction."""
    validation: float
    thresholds: dict[str, float]
    scoring: dict[str, Any]
    checkpoint: str | None
    """Fingerprints of the model; none where nothing is trained."""
    encoder: str | None
    guide: str | None
    seconds: dict[str, float] = field(default_factory=dict)


def evaluate(run: FoldRun, board: Any = None) -> Outcome | None:
    """Run to the end, or take the result if there is one; None if it was asked to stop. Raises ``CddpmError``."""
    found = read_outcome(run.folder)
    if found is not None:
        return found
    artifact.write_json(run.folder / CONFIG, recorded(run.config))
    try:
        outcome = _image(run) if run.config.method == "intensity-threshold" else _model(run, board)
    except Interrupted:
        return None
    if outcome is not None:
        artifact.write_json(run.folder / RESULT, asdict(outcome))
    return outcome


def _image(run: FoldRun) -> Outcome:
    """A threshold on the image itself: no training, no reconstruction."""
    store = SliceStore.open(run.place.store, verify=False)
    book = scoring_search.book_of(run.config, run.place, None, THREADS)
    test = Cohort.of(store, run.config.data, "test").scorer(None, threads=THREADS)
    return _measured(run, book, test, {}, None, {})


def _model(run: FoldRun, board: Any) -> Outcome | None:
    start, config = time.monotonic(), run.config
    job = worker.Assignment(config, run.place, run.number, run.stop_file, board, scoring_search.preview)
    trained = worker_group.run(job, run.folder / "ray", run.gpus)
    if trained is None:
        return None
    seconds = {"training": time.monotonic() - start}
    checkpoint, book = (
        trained.made.checkpoint,
        scoring_search.book_of(config, run.place, trained.reconstruction, THREADS),
    )
    start = time.monotonic()
    test = worker.scorer_on_test(job, checkpoint, run.gpus, book.scorer.calibration)
    seconds["test reconstruction"] = time.monotonic() - start
    moved = {UNSHIFTED: test} if run.shifts else {}
    for shift in run.shifts:
        there = replace(job, place=replace(run.place, store=shift.store))
        moved[shift.label] = worker.scorer_on_test(there, checkpoint, run.gpus, book.scorer.calibration)
    return _measured(run, book, test, moved, trained.made, seconds)


def _measured(
    run: FoldRun,
    book: ScoreBook,
    test: Scorer,
    moved: Mapping[str, Scorer],
    made: stages.Made | None,
    seconds: dict[str, float],
) -> Outcome:
    start, validation, config = time.monotonic(), book.scorer, run.config
    point, scoring = _operating_point(run, book)
    seconds = {**seconds, "search": time.monotonic() - start}
    start = time.monotonic()
    measured = measure(test, scoring, point.thresholds, config.evaluation, validation)
    shifts = [
        row
        for label, scorer in moved.items()
        for row in shifted(label, scorer, scoring, point.thresholds, config.evaluation, validation)
    ]
    if config.evaluation.reference_metrics and made is not None:
        artifact.write_json(run.folder / REFERENCE, _as_published(scoring, validation, test))
    seconds["measuring"] = time.monotonic() - start
    return Outcome(
        number=run.number,
        name=run.name,
        method=run.method,
        modality=config.data.modality,
        fold=config.data.fold,
        results=_results(run, measured),
        shifts=[{**row, "dataset": _called(config, row["dataset"])} for row in shifts],
        validation=point.objective,
        thresholds=point.thresholds,
        scoring=to_dict(scoring),
        checkpoint=made.checkpoint.name if made else None,
        encoder=made.encoder.name if made and made.encoder else None,
        guide=made.guide.name if made and made.guide else None,
        seconds=seconds,
    )


def _operating_point(run: FoldRun, book: ScoreBook) -> tuple[Point, ScoringConfig]:
    """Scoring settings and thresholds by validation alone; searched if ``search.scoring`` asks for more than one trial."""
    with point_workers(book, run.config) as score:
        points = scoring_search.search(score, run.config, book.scorer.guided, stop=run.stop_file.exists)
    scoring_search.record_points(run.folder, points, run.config)
    run.place.shelf.share(book.files)
    best = scoring_search.best(points)
    return best, scoring_with(run.config, best.params)


def _called(config: ExperimentConfig, dataset: str) -> str:
    """Name of a data set in tables; healthy scans of two modalities are two."""
    return f"{config.data.healthy} ({config.data.modality})" if dataset == HEALTHY else dataset


def _as_published(scoring: ScoringConfig, validation: Scorer, test: Scorer) -> dict[str, Any]:
    """The published code's own dictionaries, per data set; its numbers that do not exist are None here, not NaN."""
    found: dict[str, Any] = {}
    for name in test.datasets:
        threshold = reference.reference_threshold(reference.reference_volumes(validation, scoring, name), scoring)
        found[f"val/{name}"] = reference.reference_metrics(
            reference.reference_volumes(validation, scoring, name), scoring
        )
        found[f"test/{name}"] = reference.reference_metrics(
            reference.reference_volumes(test, scoring, name), scoring, threshold
        )
        found[f"threshold/{name}"] = threshold
    healthy = reference.reference_volumes(validation, scoring, HEALTHY)
    found["val/healthy"] = reference.healthy_reference_metrics(healthy, scoring)
    return {name: _without_nan(value) for name, value in found.items()}


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _results(run: FoldRun, measured: Measured) -> list[FoldResult]:
    def of(dataset: str) -> list[dict[str, Any]]:
        return [row for row in measured.rows if row["dataset"] == dataset]

    return [
        FoldResult(run.method, _called(run.config, dataset), run.config.data.fold, of(dataset), dict(values))
        for dataset, values in measured.datasets.items()
    ]


def read_outcome(folder: Path) -> Outcome | None:
    """The result of a finished run, None if it has not finished. Raises ``SearchError`` for a damaged file."""
    path = folder / RESULT
    if not path.exists():
        return None
    return artifact.read_json(path, Outcome, "a run's result", "delete it to measure this run again", SearchError)


def all_results(outcomes: Sequence[Outcome]) -> list[FoldResult]:
    """Of every method, data set and fold."""
    return [result for outcome in outcomes for result in outcome.results]
