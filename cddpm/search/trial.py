"""One trial of a sweep: train on a worker group, search scoring settings on its reconstructions, keep the result.

A trial's folder is ``<sweep>/trials/0003``. Its ``result.json`` appears whole, once; a trial that has one never runs again.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cddpm import artifact
from cddpm.config import ExperimentConfig, parse, recorded, with_values
from cddpm.data.store import SliceStore
from cddpm.errors import SearchError
from cddpm.reconstruct.cohort import Cohort
from cddpm.reconstruct.reconstruction import Reconstruction
from cddpm.scoring.score_book import ScoreBook
from cddpm.search import scoring_search
from cddpm.search.point import Point
from cddpm.training import stages, worker
from cddpm.training.loop import Interrupted

RESULT, CONFIG, POINTS = "result.json", "config.json", scoring_search.ROWS
STOPPED, FAILED = "stopped.json", "failed.json"
"""How a trial without a result ended."""


def folder_of(sweep: Path, number: int) -> Path:
    """Where trial ``number`` of a sweep keeps its files."""
    return sweep / "trials" / f"{number:04d}"


@dataclass(frozen=True)
class TrialResult:
    """What a finished trial found, on validation only."""

    number: int
    params: dict[str, Any]
    """Training settings by dotted path."""
    default: Point
    """Its reconstructions under the configuration's own scoring settings."""
    best: Point
    checkpoint: str
    encoder: str | None
    reconstruction: str
    made: tuple[str, ...]
    seconds: float
    guide: str | None = None
    """Checkpoint of the DDPM that guides the model, if one does."""

    @property
    def objective(self) -> float:
        """Best validation value."""
        return self.best.objective


@dataclass(frozen=True)
class Stop:
    """How far a trial came that was stopped early: the request to end, and what is told of it."""

    number: int
    params: dict[str, Any]
    """Training settings by dotted path."""
    objective: float
    """Its last preview: on a few volumes, and never to be compared with the best of a search on all of them."""
    images: float

    @property
    def note(self) -> str:
        """In words."""
        return f"preview {self.objective:.3f} after {int(self.images):,} images"


@dataclass(frozen=True)
class TrialJob:
    """A trial; pickles."""

    sweep: Path
    number: int
    params: dict[str, Any]
    base: ExperimentConfig
    """The sweep's configuration."""
    place: stages.Place
    gpus: float

    @property
    def folder(self) -> Path:
        """Where this trial keeps its files."""
        return folder_of(self.sweep, self.number)

    @cached_property
    def config(self) -> ExperimentConfig:
        """The sweep's configuration with this trial's settings. Raises ``ConfigError`` for an impossible combination."""
        return with_values(self.base, self.params, f"trial {self.number}")

    @property
    def stop_file(self) -> Path:
        """Asks all trials of the sweep to save and end."""
        return self.sweep / "stop"

    def stop_asked(self) -> bool:
        """Whether this trial shall end, alone or with all others."""
        return worker.stop_asked(self.stop_file, self.folder / STOPPED)


def run(job: TrialJob, board: Any, report: Callable[[dict[str, float]], None]) -> TrialResult | None:
    """Run a trial to its end, or take its result if it has one; None if it was asked to stop.

    ``report`` gets the final metrics; validations in between go through Ray Train.
    """
    result = read_result(job.folder) or _run(job, board)
    if result is not None:
        metrics = {"objective": result.objective, "images": job.config.training.images + 1}
        report(worker.plain_metrics(metrics, "objective", final=True))
    return result


def _run(job: TrialJob, board: Any) -> TrialResult | None:
    start, config = time.monotonic(), job.config
    artifact.write_json(job.folder / CONFIG, recorded(config))
    place, stop = job.place, job.stop_file
    assignment = worker.Assignment(config, place, job.number, stop, board, scoring_search.preview, job.folder / STOPPED)
    attempts = job.folder / "ray"
    name = f"attempt-{len(list(attempts.glob('attempt-*'))):02d}"
    outcome = worker.run(assignment, name, attempts, job.gpus, forward_reports=True)
    if outcome is None:
        return None
    try:
        points, best = _search(job, config, outcome, board)
    except Interrupted:
        return None
    result = TrialResult(
        number=job.number,
        params=job.params,
        default=points[0],
        best=best,
        checkpoint=outcome.made.checkpoint.name,
        encoder=outcome.made.encoder.name if outcome.made.encoder else None,
        reconstruction=outcome.reconstruction.name,
        made=outcome.made.made,
        seconds=time.monotonic() - start,
        guide=outcome.made.guide.name if outcome.made.guide else None,
    )
    scoring_search.record_points(job.folder, points, config)
    artifact.write_json(job.folder / RESULT, asdict(result))
    return result


def _search(job: TrialJob, config: ExperimentConfig, outcome: worker.Outcome, board: Any) -> tuple[list[Point], Point]:
    def progress(done: int, total: int, best: float) -> None:
        if board is not None:
            board.post(job.number, "search", done, total, best)

    reconstruction, store = Reconstruction.open(outcome.reconstruction), SliceStore.open(job.place.store, verify=False)
    scorer = Cohort.of(store, config.data, "val").scorer(
        reconstruction, threads=scoring_search.cpus(config), seconds_per_pass=outcome.pass_seconds
    )
    book = ScoreBook.open(scorer, job.place.artifacts, reconstruction.fingerprint, store.fingerprint)
    with scoring_search.point_workers(book, config) as score:
        points = scoring_search.search(score, config, scorer.guided, progress, job.stop_asked)
    return points, scoring_search.keep_volumes(job.folder, scorer, config, scoring_search.best(points))


def ending(folder: Path, error: bool = False) -> str:
    """How a trial ended: ``finished``, ``failed``, ``stopped`` (early, by the pruner) or ``interrupted``.

    ``error``: whether Ray says that it failed.
    """
    if (folder / RESULT).exists():
        return "finished"
    if error or (folder / FAILED).exists():
        return "failed"
    return "stopped" if (folder / STOPPED).exists() else "interrupted"


def read_result(folder: Path) -> TrialResult | None:
    """The result of a finished trial, None if it has not finished. Raises ``SearchError`` for a damaged file."""
    path = folder / RESULT
    if not path.exists():
        return None
    return artifact.read_json(path, TrialResult, "a trial's result", "delete it to score this trial again", SearchError)


def read_stop(folder: Path) -> Stop | None:
    """How a trial was stopped early; None if it was not, or if it has a result after all.

    Raises ``SearchError`` for a damaged file.
    """
    path = folder / STOPPED
    if not path.exists() or (folder / RESULT).exists():
        return None
    remedy = "delete it to go on with this trial"
    return artifact.read_json(path, Stop, "the record of a stopped trial", remedy, SearchError)


def read_config(folder: Path) -> ExperimentConfig:
    """The whole configuration that a trial ran under, as it was then. Raises ``SearchError`` for a missing or damaged file."""
    path = folder / CONFIG
    raw = artifact.read_json(path, dict[str, Any], "the configuration of a trial", "restore it", SearchError)
    return parse(raw, str(path))


def read_points(folder: Path) -> list[Point]:
    """Every scoring setting that a trial has tried; none if its table is not there. Raises ``SearchError`` if it is damaged."""
    path = folder / POINTS
    if not path.exists():
        return []
    return artifact.read_json(path, list[Point], "a table of scoring points", "restore it", SearchError)


def read_ending(folder: Path, name: str) -> dict[str, Any] | None:
    """A file of a trial's folder that says how it ended."""
    path = folder / name
    if not path.exists():
        return None
    return artifact.read_json(path, dict[str, Any], "the ending of a trial", "delete it to try it again", SearchError)
