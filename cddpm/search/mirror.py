"""A sweep's folder as MLflow shall show it: one parent run, a child per stage, trial and best scoring point."""

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cddpm import events
from cddpm.campaign import is_running
from cddpm.config import ExperimentConfig, parse, resolve_paths, with_values
from cddpm.errors import ConfigError
from cddpm.events import Life, Span
from cddpm.scoring.metrics import mean
from cddpm.search import budget, champion, leaderboard, record, scoring_search
from cddpm.search import trial as trials
from cddpm.search.champion import Contender
from cddpm.search.point import Point as ScoringPoint
from cddpm.search.record import Origin
from cddpm.search.trial import TrialResult
from cddpm.tracking import names
from cddpm.tracking.mirror import (
    MirroredFile,
    MirroredRun,
    Point,
    Registration,
    Status,
    curve,
    finite,
    json_file,
    noted,
    present,
    rows_file,
    texts,
)
from cddpm.tracking.stage_runs import StageRuns
from cddpm.training import checkpoint

_STATUS: dict[str, Status] = {
    "running": "RUNNING",
    "finished": "FINISHED",
    "stopped": "FINISHED",
    "failed": "FAILED",
    "interrupted": "KILLED",
}
_SHOWN = (
    "objective",
    "dice",
    "dice_std",
    "oracle_dice",
    "auprc",
    "auroc",
    "precision",
    "recall",
    "false_positive_rate",
    "volumes",
)


class SweepMirror:
    """The runs of one sweep. What cannot change any more is read once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._artifacts = folder.resolve().parents[1] / "artifacts"
        self._stages = StageRuns(folder, self._artifacts)
        self._trials: dict[int, tuple[Any, MirroredRun]] = {}
        self._points: tuple[Any, list[MirroredRun]] = (None, [])
        self._origin: tuple[Any, _Sweep] | None = None

    def runs(self) -> list[MirroredRun]:
        """All of them, parents first; none if the sweep has not begun. Raises ``SearchError`` for a damaged file."""
        life = events.life(self.folder, is_running(self.folder))
        sweep = self._sweep(life)
        if sweep is None or life is None:
            return []
        made = self._stages.runs(sweep.name, life.identity)
        own = [self._trial(sweep, life, number) for number in sorted(life.trials)]
        over = life.status != "RUNNING"  # what an extended sweep had found stays until it has found more
        contenders = champion.load(self.folder / champion.TEST) if over else []
        points = self._best_points(sweep, life) if contenders else []
        return [self._parent(sweep, life, contenders), *made, *own, *points]

    def config(self) -> ExperimentConfig | None:
        """As of the last start, with places as they are now; None if the sweep has not begun."""
        sweep = self._sweep(events.life(self.folder, running=False))
        return sweep.config if sweep else None

    def run(self, number: int) -> MirroredRun:
        """That of a trial. Raises ``LookupError`` if there is none."""
        found = next((run for run in self.runs() if run.key.endswith(names.trial_key("", number))), None)
        if found is None:
            raise LookupError(f"{self.folder}: no trial {number} has begun")
        return found

    def _sweep(self, life: Life | None) -> "_Sweep | None":
        path = self.folder / record.ORIGIN
        if life is None or not path.exists():
            return None
        state = _state(path)
        if self._origin is None or self._origin[0] != state:
            entered = record.read_origin(self.folder)
            assert entered is not None
            config = resolve_paths(parse(entered.config, str(path)), self.folder.resolve().parents[2])
            self._origin = state, _Sweep(config, entered)
        return self._origin[1]

    # The sweep

    def _parent(self, sweep: "_Sweep", life: Life, contenders: list[Contender]) -> MirroredRun:
        config, own = sweep.config, {}
        tags = {**life.whole.what.get("surroundings", {}), names.FINGERPRINT_STORE: sweep.origin.store}
        files = [json_file("config.json", sweep.origin.config)]
        if contenders:
            winner = contenders[0]
            own = self._champion_metrics(config, contenders)
            tags[names.CHAMPION] = names.trial_key(sweep.name, winner.trial or 0)
            tags[names.NOTE] = leaderboard.note(
                config, leaderboard.with_test(config, leaderboard.rows(self.folder), contenders)
            )
            rows = [{"contender": c.name, **row} for c in contenders for row in c.test.rows]
            files += [rows_file(names.VOLUMES["test"], rows), *self._pictures()]
        if life.status != "RUNNING":
            own |= _cost(self.folder)
        return MirroredRun(
            key=sweep.name,
            kind=names.KIND_SWEEP,
            name=sweep.name,
            campaign=life.identity,
            status=life.status,
            began=life.whole.began,
            ended=life.whole.ended,
            tags=texts(tags),
            params=texts(noted(config)),
            metrics=own,
            step=config.search.training.trials,
            files=files,
            data=sweep.data,
        )

    def _champion_metrics(self, config: ExperimentConfig, contenders: list[Contender]) -> dict[str, float]:
        """The sweep's own run shows the champion's scores, and beside them those of what it had to beat."""
        winner, *others = contenders
        result = trials.read_result(trials.folder_of(self.folder, winner.trial or 0))
        validation = validation_metrics(result) if result else {}
        own = {names.OBJECTIVE: winner.validation, **validation, **test_metrics(winner, config)}
        test = {c.name.replace(" ", "_"): test_metrics(c, config) for c in others}
        beside = {f"{contender}/{name}": value for contender, values in test.items() for name, value in values.items()}
        return finite_only(chosen({**own, **beside}))

    def _pictures(self) -> list[MirroredFile]:
        single = (str(champion.PICTURE), "leaderboard.csv", champion.TEST, record.FRONT)
        each = sorted(path.name for path in (self.folder / champion.PICTURES).glob("*.png"))
        return [*present(self.folder, single), *present(self.folder, [f"{champion.PICTURES}/{name}" for name in each])]

    # Trials

    def _trial(self, sweep: "_Sweep", life: Life, number: int) -> MirroredRun:
        span, folder = life.trials[number], trials.folder_of(self.folder, number)
        registered = life.registrations.get(number)
        files = tuple(sorted(_state(path) for path in folder.iterdir() if path.is_file())) if folder.is_dir() else ()
        state = (files, span, registered, len(self._stages.of(number)), life.identity)
        known = self._trials.get(number)
        if known is not None and known[0] == state and span.ended is not None:
            return known[1]
        run = self._made_trial(sweep, life, number)
        self._trials[number] = state, run
        return run

    def _made_trial(self, sweep: "_Sweep", life: Life, number: int) -> MirroredRun:
        span, folder = life.trials[number], trials.folder_of(self.folder, number)
        how = "running" if span.ended is None else trials.ending(folder)
        result = trials.read_result(folder) if how == "finished" else None
        params = result.params if result else span.what.get("params", {})
        config = self._trial_config(sweep, number, params)
        store = span.what.get("store") or sweep.origin.store
        files = record.histories(self._artifacts, config, store, result)
        points, flags = self._curves(files.values(), span)
        tags = {names.TRIAL: str(number), names.FINGERPRINT_STORE: store, **flags}
        return MirroredRun(
            key=names.trial_key(sweep.name, number),
            kind=names.KIND_TRIAL,
            name=names.run_name(f"{number:04d}", params),
            campaign=life.identity,
            status=_STATUS[how],
            began=span.began,
            ended=span.ended,
            tags=texts({**tags, **self._endings(how, number, result, store)}),
            params=texts({**params, **(result.best.params if result else {})}),
            points=points,
            metrics=self._results(number, result),
            step=config.training.images,
            files=_files(folder, how),
            data={f"slices {config.data.modality}": store},
            made_of=fingerprints(result, store) if result else {},
            registration=self._registration(life, number),
        )

    def _trial_config(self, sweep: "_Sweep", number: int, params: Mapping[str, Any]) -> ExperimentConfig:
        """What it ran under; of one that has not come so far, or whose settings are impossible, as far as is known."""
        folder = trials.folder_of(self.folder, number)
        if (folder / trials.CONFIG).exists():
            return trials.read_config(folder)
        try:
            return with_values(sweep.config, params, f"trial {number}")
        except ConfigError:
            return sweep.config

    def _endings(self, how: str, number: int, result: TrialResult | None, store: str) -> dict[str, str]:
        ending = {} if how == "running" else {names.ENDING: how}
        fault = trials.read_ending(trials.folder_of(self.folder, number), trials.FAILED) if how == "failed" else None
        if fault:
            ending[names.ERROR] = str(fault.get("error", ""))
        if result is None:
            return ending
        used = fingerprints(result, store)
        return {**ending, **fingerprint_tags(used), **self._stages.shares(number, used)}

    def _results(self, number: int, result: TrialResult | None) -> dict[str, float]:
        if result is None:
            return {}
        cost = {names.SECONDS: result.seconds, names.GPU_SECONDS: self._stages.gpu_seconds(number)}
        return finite_only({names.OBJECTIVE: result.objective, **validation_metrics(result), **cost})

    def _curves(self, files: Iterable[Path], span: Span) -> tuple[list[Point], dict[str, str]]:
        points: list[Point] = []
        flags: dict[str, str] = {}
        for file in files:
            found, said = curve(checkpoint.timed_history(file), span.began)
            points, flags = points + found, flags | said
        return points, flags

    def _registration(self, life: Life, number: int) -> Registration | None:
        event = life.registrations.get(number)
        if event is None:
            return None
        what = {name: value for name, value in event.what.items() if name != "number"}
        return Registration(**{**what, "package": self.folder / what["package"], "time_ms": int(event.time * 1000)})

    # Points

    def _best_points(self, sweep: "_Sweep", life: Life) -> list[MirroredRun]:
        """The best scoring points over all trials are runs of their own (``search.logged_points``)."""
        state = (_state(self.folder / champion.TEST), sweep.config.search.logged_points, life.identity)
        if self._points[0] != state:
            found = (
                (result, point)
                for result in record.results(self.folder)
                for point in trials.read_points(trials.folder_of(self.folder, result.number))
            )
            best = heapq.nsmallest(
                sweep.config.search.logged_points,
                found,
                key=lambda pair: (-pair[1].objective, pair[0].number, pair[1].number),
            )
            self._points = state, [self._point(sweep, life, *pair) for pair in best]
        return self._points[1]

    def _point(self, sweep: "_Sweep", life: Life, result: TrialResult, point: ScoringPoint) -> MirroredRun:
        number = f"{result.number:04d}.{point.number:04d}"
        tags = {
            names.TRIAL: str(result.number),
            names.POINT: str(point.number),
            names.FINGERPRINT_RECONSTRUCTION: result.reconstruction,
        }
        own = life.trials.get(result.number, life.whole)
        return MirroredRun(
            key=names.child_key(sweep.name, f"point-{number}"),
            kind=names.KIND_POINT,
            name=names.run_name(number, point.params) if point.params else f"{number} as configured",
            campaign=life.identity,
            status="FINISHED",
            began=own.began,
            ended=own.ended if own.ended is not None else own.began,
            tags=texts(tags),
            params=texts(point.params),
            metrics=finite_only({names.OBJECTIVE: point.objective, **chosen(_named("val", point.datasets))}),
            step=self._trial_config(sweep, result.number, result.params).training.images,
        )


@dataclass(frozen=True)
class _Sweep:
    config: ExperimentConfig
    origin: Origin

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def data(self) -> dict[str, str]:
        return {f"slices {self.config.data.modality}": self.origin.store}


def _state(path: Path) -> tuple[str, int, int]:
    state = path.stat()
    return path.name, state.st_mtime_ns, state.st_size


def _files(folder: Path, how: str) -> list[MirroredFile]:
    if how == "running":
        return []
    ended = [trials.CONFIG, trials.STOPPED, trials.FAILED]
    found = (
        [trials.RESULT, scoring_search.LOGGED, scoring_search.VOLUMES, scoring_search.PICTURE]
        if how == "finished"
        else []
    )
    return present(folder, [*ended, *found], (scoring_search.LOGGED, scoring_search.VOLUMES))


def fingerprints(result: TrialResult, store: str) -> dict[str, str]:
    """Of every stage that a trial's model is made of, by stage."""
    found = {"store": store, "checkpoint": result.checkpoint, "reconstruction": result.reconstruction}
    beside = {"encoder": result.encoder, "guide": result.guide}
    return {**found, **{name: value for name, value in beside.items() if value}}


def fingerprint_tags(used: Mapping[str, str]) -> dict[str, str]:
    """Tags of a model's stages (stage -> fingerprint), but for the store, which has a tag everywhere."""
    tags = {
        "checkpoint": names.FINGERPRINT_CHECKPOINT,
        "reconstruction": names.FINGERPRINT_RECONSTRUCTION,
        "encoder": names.FINGERPRINT_ENCODER,
        "guide": names.FINGERPRINT_GUIDE,
    }
    return {tag: used[stage] for stage, tag in tags.items() if stage in used}


def _cost(folder: Path) -> dict[str, float]:
    spent = budget.read(folder)
    return {
        names.SECONDS: spent.seconds,
        names.CPU_HOURS: spent.cpu_hours,
        names.GPU_SECONDS: spent.gpu_hours * 3600,
    }


def validation_metrics(result: TrialResult) -> dict[str, float]:
    """Of a trial at its best setting, as they are filed."""
    return _named("val", result.best.datasets)


def test_metrics(contender: Contender, config: ExperimentConfig) -> dict[str, float]:
    """Of a contender, as they are filed."""
    return _named("test", {n: contender.test.aggregates[n] for n in config.objective_datasets})


def _named(split: str, datasets: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Metrics per data set, and Dice and AUPRC as means over data sets."""
    metrics = {
        names.metric(split, metric, dataset): value
        for dataset, values in datasets.items()
        for metric, value in values.items()
    }
    for metric in ("dice", "auprc"):
        value = mean(values.get(metric) for name, values in datasets.items() if name != "healthy")
        if value is not None:
            metrics[names.metric(split, metric)] = value
    return metrics


def chosen(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that a person compares models by; the others are in the run's files."""
    return {name: value for name, value in metrics.items() if name.rsplit("/", 1)[-1] in _SHOWN}


def finite_only(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Those that are finite numbers: MLflow takes no others."""
    return {name: number for name, value in metrics.items() if (number := finite(value)) is not None}
