"""One trial of a sweep: train on a worker group, search scoring settings on its reconstructions, keep the result.

A trial's folder is ``<sweep>/trials/0003``. Its ``result.json`` appears whole, once; a trial that has one never runs again.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cddpm import artifact, shelf
from cddpm.config import ExperimentConfig, parse, recorded, with_values
from cddpm.errors import CddpmError, SearchError
from cddpm.search import scoring_search
from cddpm.search.point import Point
from cddpm.training import stages, worker, worker_group
from cddpm.training.loop import Interrupted

RESULT, CONFIG, POINTS = "result.json", "config.json", scoring_search.ROWS
STOPPED, FAILED = "stopped.json", "failed.json"
"""How a trial without a result ended."""
ALL_PROPOSED = "all proposed"
"""Box of the board in which something lies once no further trial will be proposed."""


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


def run(
    proposal: dict[str, Any],
    sweep: Path,
    base: ExperimentConfig,
    place: stages.Place,
    gpus: float,
    board: Any,
    report: Callable[[dict[str, float]], None],
) -> None:
    """Run a trial to its end, or take its result if it has one: the trainable of Ray Tune.

    ``proposal``: ``number`` and ``params``, training settings by dotted path; ``base``: the sweep's configuration. ``report``
    gets its validations, and what the trial ends with. A trial that was asked to stop, or that fails
    for a fault which a second try would meet again, reports 0 images: one that ends without an objective ends the whole sweep.
    """
    number, params = int(proposal["number"]), proposal["params"]
    folder, ends = folder_of(sweep, number), {"images": 0.0}
    try:
        with board.warnings(f"trial {number:04d}"):
            config = with_values(base, params, f"trial {number}")
            own = place.of(config)
            config = stages.as_prepared(config, own)
            job = worker.Assignment(
                config, own, number, sweep / "stop", board, scoring_search.preview, folder / STOPPED
            )
            result = read_result(folder) or made(job, params, folder, gpus, report)
        if result is not None:
            ends = {"objective": result.objective, "images": config.training.images + 1.0}
    except CddpmError as error:
        artifact.write_json(folder / FAILED, {"number": number, "error": str(error)})
    finally:  # the process stays for the next trial, if there is one
        shelf.release()
        if board.left(ALL_PROPOSED, 0) or worker.stop_asked(sweep / "stop"):
            worker_group.dismiss()
    report(worker.plain_metrics(ends, "objective", final=True))


def made(
    job: worker.Assignment,
    params: dict[str, Any],
    folder: Path,
    gpus: float,
    report: Callable[[dict[str, float]], None],
) -> TrialResult | None:
    """Train, search scoring settings on what the model reconstructs, keep the result; None if it was asked to stop."""
    start, config, board = time.monotonic(), job.config, job.board
    artifact.write_json(folder / CONFIG, recorded(config))
    outcome = worker_group.run(job, folder / "ray", gpus, report)
    if outcome is None:
        return None

    def progress(done: int, total: int, best: float) -> None:
        if board is not None:
            board.post(job.trial, "search", done, total, best)

    threads = scoring_search.cpus(config)
    book = scoring_search.book_of(config, job.place, outcome.reconstruction, threads, outcome.pass_seconds)
    if scoring_search.worker_count(config) > 1:
        worker_group.dismiss()  # they need its CPUs
    try:
        with scoring_search.point_workers(book, config) as score:
            points = scoring_search.search(score, config, book.scorer.guided, progress, job.asked_to_stop)
    except Interrupted:
        return None
    job.place.shelf.share(book.files)
    result = TrialResult(
        number=job.trial,
        params=params,
        default=points[0],
        best=scoring_search.keep_volumes(folder, book.scorer, config, scoring_search.best(points)),
        checkpoint=outcome.made.checkpoint.name,
        encoder=outcome.made.encoder.name if outcome.made.encoder else None,
        reconstruction=outcome.reconstruction.name,
        made=outcome.made.made,
        seconds=time.monotonic() - start,
        guide=outcome.made.guide.name if outcome.made.guide else None,
    )
    scoring_search.record_points(folder, points, config)
    artifact.write_json(folder / RESULT, asdict(result))
    return result


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
