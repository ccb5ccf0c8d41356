"""What a sweep writes into the lab book: one parent run, a child per trial, curves, files, and the registered champion."""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from cddpm.config import ExperimentConfig, recorded, with_values
from cddpm.data.store import SliceStore
from cddpm.errors import StoppedError, TrackingError
from cddpm.scoring.metrics import mean
from cddpm.search import budget, label, point_table, scoring_search, showcase
from cddpm.search import trial as trials
from cddpm.search.champion import Contender, weights_of
from cddpm.search.point import Point
from cddpm.search.trial import TrialResult
from cddpm.tracking import names
from cddpm.tracking.package import Pipeline, write_package
from cddpm.tracking.runs import LabBook
from cddpm.tracking.stage_runs import StageRuns
from cddpm.tracking.surroundings import code, noted, surroundings
from cddpm.tracking.values import Promised
from cddpm.training import checkpoint, stages

ALIAS = "champion"
TEST_VOLUMES = "test_volumes.json"
"""Table of the sweep's run: what was scored on test, a row per contender and volume."""
_SECONDS_AT_END, _SECONDS_TO_END = 60.0, 5.0
"""How long the last entries of a sweep, and those of one that was cut off, may take; what is left then waits."""
_STATUS: dict[str, Literal["FINISHED", "FAILED", "KILLED"]] = {
    "finished": "FINISHED",
    "stopped": "FINISHED",
    "failed": "FAILED",
    "interrupted": "KILLED",
}


@dataclass
class Lab:
    """The lab book of one sweep; a context manager. Trials are entered from the driver alone."""

    config: ExperimentConfig
    folder: Path
    place: stages.Place
    store: str
    book: LabBook
    run: str = ""
    _runs: dict[int, str] = field(default_factory=dict)
    _params: dict[int, dict[str, Any]] = field(default_factory=dict)
    _left: int = 0
    _stages: StageRuns = field(init=False)

    @classmethod
    def open(cls, config: ExperimentConfig, folder: Path, place: stages.Place) -> Self:
        """Open the lab book and the sweep's run. Raises as ``LabBook.open``."""
        book = LabBook.open(config.tracking, config.output_dir, config.output_dir / "spool")
        store = SliceStore.open(place.store, verify=False).fingerprint
        lab = cls(config, folder, place, store, book)
        lab.run = book.parent(config.name, recorded(config), surroundings(), params=noted(config))
        lab._stages = StageRuns(book, lab.run, folder, place.artifacts)
        lab._enter_data(lab.run)
        return lab

    def _enter_data(self, run: str) -> None:
        name = f"slices {self.config.data.modality}"
        self.book.log_dataset_inputs(run, self.store, name=name)

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
        self.book.end(_SECONDS_TO_END)

    def started(self, number: int, params: dict[str, Any]) -> None:
        """A trial starts, or is continued: its run is made or opened again."""
        self._params[number] = params
        self._runs[number] = self.book.trial(self.run, number, params, {names.FINGERPRINT_STORE: self.store})
        self._enter_data(self._runs[number])

    def reported(self, number: int) -> None:
        """Enter the points of a trial's curves that are new, and stages that were computed meanwhile."""
        self._stages.enter()
        for history in self._histories(number):
            self.book.log_history(self._runs[number], checkpoint.read_history(history))

    def ended(self, number: int, how: str, result: TrialResult | None) -> None:
        """Enter how a trial ended, and what it found."""
        run = self._runs[number]
        self.reported(number)
        if result is not None:
            self._enter_result(run, result)
        for name in (trials.CONFIG, trials.STOPPED, trials.FAILED):
            file = self.folder / "trials" / f"{number:04d}" / name
            if file.exists():
                self.book.log_artifact(run, file)
        self.book.set_tags(run, {names.ENDING: how})
        self.book.close(run, _STATUS[how])

    def catch_up(self, results: list[TrialResult], stops: Sequence[trials.Stop] = ()) -> None:
        """Enter ended trials that this process has not run: an earlier driver may have died before it did."""
        for result in results:
            if result.number not in self._runs:
                self.started(result.number, result.params)
                self.ended(result.number, "finished", result)
        for stop in stops:
            if stop.number not in self._runs:
                self.started(stop.number, stop.params)
                self.ended(stop.number, "stopped", None)

    def _enter_result(self, run: str, result: TrialResult) -> None:
        step = self._trial_config(result.number).training.images
        used = {"store": self.store, **_fingerprints(result, self.store)}
        self._stages.link(run, result.number, used)
        cost = {names.SECONDS: result.seconds, names.GPU_SECONDS: self._stages.gpu_seconds(result.number)}
        self.book.log_metrics(run, {names.OBJECTIVE: result.objective, **_validation(result), **cost}, step)
        tags = {
            names.FINGERPRINT_CHECKPOINT: result.checkpoint,
            names.FINGERPRINT_RECONSTRUCTION: result.reconstruction,
            **({names.FINGERPRINT_ENCODER: result.encoder} if result.encoder else {}),
            **({names.FINGERPRINT_GUIDE: result.guide} if result.guide else {}),
        }
        self.book.set_tags(run, tags)
        self.book.set_params(run, result.best.params)
        folder = self.folder / "trials" / f"{result.number:04d}"
        self.book.log_artifact(run, folder / trials.RESULT)
        self.book.log_table(run, folder / point_table.LOGGED)
        for name, keep in ((showcase.VOLUMES, self.book.log_table), (showcase.PICTURE, self.book.log_artifact)):
            if (folder / name).exists():
                keep(run, folder / name)

    def enter_points(self, results: list[TrialResult]) -> None:
        """The best scoring points over all trials become runs of their own (``search.logged_points``)."""
        wanted = self.config.search.logged_points
        found = ((r, point) for r in results for point in trials.read_points(trials.folder_of(self.folder, r.number)))
        best = heapq.nsmallest(wanted, found, key=lambda pair: (-pair[1].objective, pair[0].number, pair[1].number))
        for result, point in best:
            self._enter_point(result, point)

    def _enter_point(self, result: TrialResult, point: Point) -> None:
        number, tags = f"{result.number:04d}.{point.number:04d}", {names.TRIAL: str(result.number)}
        tags = {**tags, names.POINT: str(point.number), names.FINGERPRINT_RECONSTRUCTION: result.reconstruction}
        name = names.run_name(number, point.params) if point.params else f"{number} as configured"
        run = self.book.child(self.run, f"point-{number}", names.KIND_POINT, name, point.params, tags)
        metrics = {names.OBJECTIVE: point.objective, **_chosen(_named("val", point.datasets))}
        self.book.log_metrics(run, metrics, self._trial_config(result.number).training.images)
        self.book.close(run, "FINISHED")

    def _histories(self, number: int) -> Iterator[Path]:
        """Curve files of the trial's stages: finished ones, or those in the making."""
        config = self._trial_config(number)
        identities = [(stages.CHECKPOINT, stages.checkpoint_identity(config, self.store)[0])]
        if config.model.conditioned and config.pretraining.enabled:
            identities.append((stages.ENCODER, stages.encoder_identity(config, self.store)[0]))
        for kind, name in identities:
            for folder in (self.place.artifacts / kind / name, self.place.artifacts / kind / ".work" / name):
                if (folder / checkpoint.HISTORY).exists():
                    yield folder / checkpoint.HISTORY
                    break

    def _trial_config(self, number: int) -> ExperimentConfig:
        return with_values(self.config, self._params.get(number, {}), f"trial {number}")

    def register(self, results: list[TrialResult], winner: Contender, beside: list[Contender]) -> None:
        """Register the best trials under their validation metrics and point the alias at the first, once MLflow answers.

        Only the winner, which is ``results[0]``, has test metrics.
        """
        test = _test(winner, self.config)
        why = f"best {self.config.search.objective} on validation of sweep {self.config.name}"
        metrics = {**_chosen(test), names.OBJECTIVE: results[0].objective}
        self._register(results[0], metrics, winner.test.rows, Promised(ALIAS, why))
        for other in results[1 : self.config.tracking.registered_trials]:
            self._register(other, {names.OBJECTIVE: other.objective}, [])
        self._enter_champion(results[0], winner, test, beside)

    def version(self, result: TrialResult) -> int | None:
        """The version that a trial's model became; None if its registration waits for MLflow.

        Raises ``TrackingError`` if MLflow has everything else and refused this.
        """
        found = self.book.registered(self._runs[result.number], self.config.tracking.registered_model)
        if found is None and not self._left:
            raise TrackingError(
                f"{self.uri}: trial {result.number:04d} was not registered as '{self.config.tracking.registered_model}': "
                f"{self.book.fault}; its package is {self._package(result)}"
            )
        return found

    def verdict(self, result: TrialResult) -> str:
        """What became of the best trial's model, as the person reads it. Raises as ``version``."""
        number, model = self.version(result), self.config.tracking.registered_model
        if number is None:
            return f"'{model}': its registration waits for MLflow"
        moved = self.book.promotion(self._runs[result.number], model)
        if moved is None or not moved.refused:
            return f"'{model}': version {number} is the {ALIAS}"
        return f"'{model}': version {number} is registered; version {moved.previous} stays {ALIAS}: {moved.refused}"

    def is_champion(self, result: TrialResult) -> bool:
        """Whether the alias means the best trial's model."""
        moved = self.book.promotion(self._runs[result.number], self.config.tracking.registered_model)
        return moved is not None and not moved.refused

    def _package(self, result: TrialResult) -> Path:
        return self.folder / "packages" / f"{result.number:04d}"  # two trials may have found one checkpoint

    def _register(
        self,
        result: TrialResult,
        metrics: dict[str, float],
        test: list[dict[str, Any]],
        promotion: Promised | None = None,
    ) -> None:
        """Package a trial and register it; the same package of the same trial only once."""
        # not the sweep's own of today: what was extended since then must not make another package of the same model
        config = trials.read_config(trials.folder_of(self.folder, result.number))
        validation = _validation(result)
        pipeline = Pipeline(
            scoring=scoring_search.scoring_with(config, result.best.params),
            thresholds=result.best.thresholds,
            healthy_statistics=result.best.statistics,
            validation=validation,
            fingerprints=_fingerprints(result, self.store),
            sweep=self.config.name,
            trial=result.number,
        )
        package = self._package(result)
        write_package(package, weights_of(self.place, result), config, pipeline)
        tags = {names.SWEEP: self.config.name, names.TRIAL: str(result.number), **code(), **_searched(result)}
        tags[names.AIM] = (
            f"{self.config.search.objective} on {', '.join(scoring_search.objective_datasets(self.config))}"
        )
        model = self.config.tracking.registered_model
        own = {**_chosen(validation), **metrics}
        rows = showcase.rows(trials.folder_of(self.folder, result.number))
        shown = label.markdown(config, result, rows, test)
        self.book.register(self._runs[result.number], package, own, tags, model, promotion, shown)

    def _enter_champion(
        self, result: TrialResult, winner: Contender, test: dict[str, float], beside: list[Contender]
    ) -> None:
        """The sweep's own run shows the champion's scores, and beside them those of what it had to beat."""
        step = self.config.search.training.trials
        others = {
            f"{c.name.replace(' ', '_')}/{name}": value for c in beside for name, value in _test(c, self.config).items()
        }
        own = {names.OBJECTIVE: result.objective, **_validation(result), **test}
        self.book.log_metrics(self.run, _chosen({**own, **others}), step)
        self.book.set_tags(self.run, {names.CHAMPION: names.trial_key(self.config.name, result.number)})
        rows = [{"contender": c.name, **row} for c in (winner, *beside) for row in c.test.rows]
        self.book.log_rows(self.run, rows, TEST_VOLUMES)

    def note(self, markdown: str) -> None:
        """What MLflow shows on top of the sweep's run."""
        self.book.set_tags(self.run, {names.NOTE: markdown})

    def keep(self, files: list[Path], folder: str | None = None) -> None:
        """Files of the whole sweep, in ``folder`` of its run."""
        for file in files:
            self.book.log_artifact(self.run, file, folder)

    def close(self) -> int:
        """The sweep is over; returns how many entries MLflow does not have yet."""
        self._stages.enter()
        spent = budget.read(self.folder)
        cost = {
            names.SECONDS: spent.seconds,
            names.CPU_HOURS: spent.cpu_hours,
            names.GPU_SECONDS: spent.gpu_hours * 3600,
        }
        self.book.log_metrics(self.run, cost, self.config.search.training.trials)
        self.book.close(self.run, "FINISHED")
        self._left = self.book.flush(_SECONDS_AT_END)
        return self._left


def _searched(result: TrialResult) -> dict[str, str]:
    """What the searches over training and scoring chose, as tags."""
    chosen = {**result.params, **result.best.params}
    return {names.safe(f"{names.SETTING}.{path}"): str(value) for path, value in chosen.items()}


def _validation(result: TrialResult) -> dict[str, float]:
    return _named("val", result.best.datasets)


def _test(contender: Contender, config: ExperimentConfig) -> dict[str, float]:
    return _named("test", {n: contender.test.aggregates[n] for n in scoring_search.objective_datasets(config)})


def _named(split: str, datasets: dict[str, dict[str, float]]) -> dict[str, float]:
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


def _chosen(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics that a person compares models by; the others are in the run's files."""
    return {name: value for name, value in metrics.items() if name.rsplit("/", 1)[-1] in _SHOWN}


def _fingerprints(result: TrialResult, store: str) -> dict[str, str]:
    found = {"store": store, "checkpoint": result.checkpoint, "reconstruction": result.reconstruction}
    beside = {"encoder": result.encoder, "guide": result.guide}
    return {**found, **{name: value for name, value in beside.items() if value}}
