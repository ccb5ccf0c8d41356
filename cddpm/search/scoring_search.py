"""The inner search of a trial: scoring settings over its cached reconstructions, all arithmetic; and what is kept of it.

==========================  ===========================================================================================
``scoring_trials.json``     all points, as this program reads them back
``scoring_trials.parquet``  one flat table of them, for pandas or DuckDB
``scoring_table.json``      the same table for MLflow (``mlflow.load_table``, and its pages)
``scoring_study.log``       a journal that ``optuna.load_study`` (and Optuna's dashboard) opens, every point a trial
``val_volumes.json``        the validation volumes at the best point, a row each
``val_volumes.png``         the best, median and worst of them
==========================  ===========================================================================================
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import optuna
import pyarrow as pa
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from pyarrow import parquet

from cddpm import artifact
from cddpm.cluster import ActorPool
from cddpm.config import ExperimentConfig, LevelConfig, active, value_at, with_values
from cddpm.data.store import SliceStore
from cddpm.reconstruct.cohort import Cohort
from cddpm.reconstruct.reconstruction import Reconstruction
from cddpm.scoring.score import Scorer, evaluate
from cddpm.scoring.score_book import ScoreBook, book_folder
from cddpm.search import space as spaces
from cddpm.search.point import (
    Params,
    Point,
    PointScorer,
    ScorePoints,
    in_process,
    measured,
    scoring_with,
)
from cddpm.search.sampler import Sampler, first_points, point_count
from cddpm.search.window import Goal, memory_for
from cddpm.seeds import seed_of
from cddpm.tracking.mirror import table
from cddpm.training.loop import Interrupted
from cddpm.training.stages import Place

GUIDANCE = "scoring.guidance_scale"


class _Search:
    """The study of one inner search, kept in memory: what it proposes, and what the scorer says of it."""

    def __init__(self, score: ScorePoints, config: ExperimentConfig, guided: bool) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._score, self._config = score, config
        self.level = _level(config, guided)
        seed = seed_of(config.seed, "scoring search")
        goals = [aim.goal for aim in config.search.aims]
        self._study = study_of(self.level, goals, seed)
        own = spaces.point(self.level.space, spaces.defaults(self.level.space, config))
        self._whole = spaces.is_complete(self.level.space, own, config)
        grid, queue = self.level.sampler == "grid", first_points(self.level, config, seed)
        if not grid and not self._whole:  # tried as it is, but no point of the space
            queue = queue[1:]
        for params in queue[: self.level.trials]:
            self._study.enqueue_trial(params)
        self.trials = point_count(self.level, config)

    def first(self) -> list[Point]:
        """The configuration as it is; the sampler learns from it if it lies in the space."""
        points = list(self._score([(0, {})]))
        if self._whole and self.level.space:
            self._tell([trial for trial, _ in self._ask(1)], points)
        return points

    def next(self, number: int) -> list[Point]:
        """As many points as one batch has (fewer at the end), from ``number`` on, as the sampler proposes them."""
        asked = self._ask(min(self._config.search.scoring_batch, self.trials - number))
        points = list(self._score([(number + place, params) for place, (_, params) in enumerate(asked)]))
        self._tell([trial for trial, _ in asked], points)
        return points

    def _ask(self, count: int) -> list[tuple[optuna.Trial, Params]]:
        """New trials with their settings; of those that are still without a value the sampler expects nothing good."""
        trials = (self._study.ask() for _ in range(count))
        return [(trial, spaces.suggest(self.level.space, trial, self._config)) for trial in trials]

    def _tell(self, asked: list[optuna.Trial], points: list[Point]) -> None:
        for trial, point in zip(asked, points, strict=True):
            self._study.tell(trial, measured(self._config, point.values))


def study_of(level: LevelConfig, goals: Sequence[Goal], seed: int) -> optuna.Study:
    """A study in memory for one search of ``level``, however long, that is never taken up again."""
    sampler = Sampler(level, seed, lasting=True)
    return optuna.create_study(directions=goals, sampler=sampler, storage=memory_for(level, goals))


def _level(config: ExperimentConfig, guided: bool) -> LevelConfig:
    """The scoring level, without guidance if there is nothing to guide with."""
    level = config.search.scoring
    wanted = {path: parameter for path, parameter in level.space.items() if guided or path != GUIDANCE}
    start = tuple({path: value for path, value in point.items() if path in wanted} for point in level.start)
    return level.model_copy(update={"space": wanted, "start": start})


def search(
    scorer: Scorer | ScoreBook | ScorePoints,
    config: ExperimentConfig,
    guided: bool,
    progress: Callable[[int, int, float], None] = lambda done, total, best: None,
    stop: Callable[[], bool] = lambda: False,
) -> list[Point]:
    """Try ``search.scoring.trials`` settings on validation reconstructions; the first is ``config`` itself.

    ``scorer`` scores in this process; or a function scores each batch of ``search.scoring_batch`` points, as
    ``point_workers`` gives one. Guidance is searched only if the model was trained with condition dropout
    (``guided``). A grid ends with its last point. With several objectives the sampler looks for their Pareto front. Same seed
    and same batch, same points, wherever they are scored. Raises ``Interrupted`` when asked to stop, ``DataError`` and
    ``SearchError`` for an objective without a value.
    """
    score = in_process(scorer, config) if isinstance(scorer, Scorer | ScoreBook) else scorer
    walk, points = _Search(score, config, guided), list[Point]()
    while len(points) < walk.trials:
        if stop():
            raise Interrupted("the search over scoring settings was stopped; the next start repeats it")
        points += walk.next(len(points)) if points else walk.first()
        progress(len(points), walk.trials, max(p.objective for p in points))
    return points


def preview(scorer: Scorer, config: ExperimentConfig, guided: bool) -> dict[str, float]:
    """The inner search of a model in training: ``search.preview_trials`` settings on a few volumes, for one objective.

    Gives the best value by data set. Raises as ``search``.
    """
    own = {"search.scoring.trials": config.search.preview_trials, "search.objectives": [], "search.scoring_batch": 1}
    found = best(search(scorer, with_values(config, own, "preview"), guided))
    return {name: found.datasets[name][config.search.objective] for name in config.objective_datasets}


def best(points: list[Point]) -> Point:
    """The point of the highest (first) objective, the earliest of equals."""
    return max(points, key=lambda p: (p.objective, -p.number))


ROWS, TABLE, LOGGED = "scoring_trials.json", "scoring_trials.parquet", "scoring_table.json"
STUDY_FILE = "scoring_study.log"
STUDY = "scoring"
_ATTRIBUTES = ("thresholds", "datasets", "seconds", "values")


def record_points(folder: Path, points: Sequence[Point], config: ExperimentConfig) -> None:
    """Write the four files into ``folder``, each whole or not at all. Raises ``StorageError`` for a full disk."""
    rows = [point.row() for point in points]
    flat, sink = columns(rows), pa.BufferOutputStream()
    artifact.write_json(folder / ROWS, rows)
    parquet.write_table(pa.table(flat), sink)
    artifact.write_bytes(folder / TABLE, sink.getvalue())
    data = list(zip(*flat.values(), strict=True))
    artifact.write_text(folder / LOGGED, json.dumps({"columns": list(flat), "data": data}))
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
    values, distributions = measured(config, point.values), {path: known[path] for path in params}
    return optuna.trial.create_trial(params=params, distributions=distributions, values=values, user_attrs=found)


def _own(config: ExperimentConfig) -> dict[str, Any]:
    """Settings of point 0: the configuration's own values of what is searched beside them."""
    space = config.search.scoring.space
    own = spaces.defaults(space, config)
    return {path: own[path] for path in active(space, lambda asked: value_at(config, asked), own)}


def cpus(config: ExperimentConfig) -> int:
    """CPUs that the workers of a training book; they are free while its points are scored."""
    return max(1, int(config.compute.workers * config.compute.cpus_per_worker))


def book_of(
    config: ExperimentConfig,
    place: Place,
    reconstruction: Path | None,
    threads: int,
    seconds_per_pass: float | None = None,
) -> ScoreBook:
    """What scores settings on the validation cohort; without a ``reconstruction`` by the image itself. No score is made twice."""
    store = SliceStore.open(place.store, verify=False)
    predicted = Reconstruction.open(reconstruction) if reconstruction else None
    cohort = Cohort.of(store, config.data, "val")
    scorer = cohort.scorer(predicted, threads=threads, seconds_per_pass=seconds_per_pass)
    fingerprint = predicted.fingerprint if predicted else None
    place.shelf.gather(book_folder(scorer, place.artifacts, fingerprint, store.fingerprint))
    return ScoreBook.open(scorer, place.artifacts, fingerprint, store.fingerprint)


def worker_count(config: ExperimentConfig) -> int:
    """Processes that score the points of a search; 1 is the caller's own."""
    level = config.search.scoring
    return min(config.search.scoring_batch, cpus(config), level.trials if level.space else 1)


@contextmanager
def point_workers(scorer: Scorer | ScoreBook, config: ExperimentConfig) -> Iterator[ScorePoints]:
    """Scores batches as ``search.scoring_batch`` asks, until the block ends.

    Processes take over ``scorer``'s cohort, not its memory. With a single point, batch or CPU it works in this one.
    """
    count = worker_count(config)
    if count == 1:
        yield in_process(scorer, config)
        return
    with ActorPool(PointScorer(scorer, config), count) as pool:
        yield pool.map


VOLUMES, PICTURE = "val_volumes.json", "val_volumes.png"


def keep_volumes(folder: Path, scorer: Scorer, config: ExperimentConfig, best: Point) -> Point:
    """Write both into ``folder``: every validation volume measured, and the best, median and worst of them drawn.

    No picture without a lesion to draw. Gives ``best`` with all that an evaluation measures. Raises ``StorageError`` if the
    disk refuses.
    """
    from cddpm.scoring.figures import overview, overview_rows  # a training that begins does not wait for Matplotlib

    scoring = scoring_with(config, best.params)
    evaluation = evaluate(scorer, scoring, best.thresholds)
    rows = [{**row, "subject": scorer.store.volumes[row["volume_index"]].subject} for row in evaluation.rows]
    artifact.write_text(folder / VOLUMES, json.dumps(table(rows)))
    if shown := overview_rows(scorer, scoring, rows):
        overview(shown, folder / PICTURE)
    return replace(best, datasets=evaluation.aggregates)


def volume_rows(folder: Path) -> list[dict[str, Any]]:
    """The table that ``keep_volumes`` wrote, a row per volume; empty where it did not."""
    file = folder / VOLUMES
    if not file.exists():
        return []
    found = json.loads(file.read_text())
    return [dict(zip(found["columns"], values, strict=True)) for values in found["data"]]
