"""The end of a sweep: its best trials become packages, and it is decided that they are registered, under which label."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cddpm import events
from cddpm.config import ExperimentConfig
from cddpm.errors import TrackingError
from cddpm.scoring import statistics
from cddpm.scoring.statistics import FoldResult, Interval
from cddpm.search import mirror, scoring_search
from cddpm.search import trial as trials
from cddpm.search.champion import Contender, weights_of
from cddpm.search.mirror import SweepMirror
from cddpm.search.point import objective_datasets, scoring_with
from cddpm.search.trial import TrialResult
from cddpm.text.numbers import counted, setting
from cddpm.tracking import names
from cddpm.tracking.lab import Lab
from cddpm.tracking.mirror import finite, noted
from cddpm.tracking.package import Pipeline, write_package
from cddpm.tracking.package_files import verify_package
from cddpm.tracking.provenance import code
from cddpm.tracking.registry import user
from cddpm.tracking.version_comparison import CONFIDENCE, HEALTHY, MEASURES, RESAMPLES
from cddpm.training import stages

MOST_SETTINGS = 12
Rows = Sequence[Mapping[str, Any]]


def label(config: ExperimentConfig, result: TrialResult, validation: Rows, test: Rows) -> str:
    """``config``: of the trial; ``validation`` and ``test``: a row per volume, of test only for a sweep's champion."""
    kind = "Conditioned DDPM" if config.model.conditioned else "DDPM"
    chosen = {**result.params, **result.best.params}
    other = {
        path: value
        for path, value in noted(config).items()
        if path not in chosen and not path.startswith(("search.", "data."))
    }
    data, cohorts = config.data, ", ".join(config.data.unhealthy)
    parts = [
        f"{kind} of trial **{names.trial_key(config.name, result.number)}**, chosen by {config.search.objective} on "
        f"validation ({result.objective:.3f}).",
        _figures(validation, test),
        f"**Chosen by the search**: {_settings(chosen)}",
        f"**Otherwise than the defaults**: {_settings(other)}",
        f"**Data**: {data.modality} of {data.healthy}, fold {data.fold}; {cohorts}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n\n"


def _figures(validation: Rows, test: Rows) -> str:
    """A line per data set and measure: means over subjects with 95 % intervals."""
    columns = {"validation": _intervals(validation), **({"test": _intervals(test)} if test else {})}
    lines = [["mean over subjects", *columns], ["---", *("---" for _ in columns)]]
    for dataset, measure in sorted({key for found in columns.values() for key in found}):
        shown = [_interval(found.get((dataset, measure))) for found in columns.values()]
        lines.append([f"{dataset} {measure}", *shown])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if len(lines) > 2 else ""


def _intervals(rows: Rows) -> dict[tuple[str, str], Interval]:
    found = {}
    for dataset in {str(row["dataset"]) for row in rows} - {HEALTHY}:
        result = FoldResult("label", dataset, 0, [_measured(row) for row in rows if row["dataset"] == dataset], {})
        for measure in MEASURES:
            values = statistics.subject_means([result], measure).values()
            if values:
                found[dataset, measure] = statistics.bootstrap_interval(values, RESAMPLES, CONFIDENCE)
    return found


def _measured(row: Mapping[str, Any]) -> dict[str, Any]:
    own = {"volume": row["volume"], "subject": row.get("subject")}
    return {**own, **{measure: finite(row.get(measure)) for measure in MEASURES}}


def _interval(found: Interval | None) -> str:
    if found is None or found.mean is None:
        return "-"
    bounds = f" [{found.low:.3f}, {found.high:.3f}]" if found.low is not None and found.high is not None else ""
    return f"{found.mean:.3f}{bounds}, {counted(found.subjects, 'subject')}"


def _settings(values: Mapping[str, Any]) -> str:
    """The first ``MOST_SETTINGS``; a label is no dump."""
    shown = [f"`{path}` {setting(value)}" for path, value in values.items()]
    left = len(shown) - MOST_SETTINGS
    more = [f"and {left} more in the package's `config.json`"] if left > 0 else []
    return ", ".join([*shown[:MOST_SETTINGS], *more]) or "nothing"


ALIAS = "champion"


@dataclass(frozen=True)
class Registering:
    """Used by the driver of a sweep alone; ``lab`` publishes what is decided here."""

    config: ExperimentConfig
    place: stages.Place
    lab: Lab
    runs: SweepMirror

    def register(self, results: list[TrialResult], winner: Contender) -> None:
        """Decide that the best trials are registered under their validation metrics, and that the alias means the first.

        Only the winner, which is ``results[0]``, has test metrics.
        """
        why = f"best {self.config.search.objective} on validation of sweep {self.config.name}"
        test = mirror.test_metrics(winner, self.config)
        self._register(results[0], test, winner.test.rows, ALIAS, why)
        for other in results[1 : self.config.tracking.registered_trials]:
            self._register(other, {}, [])

    def _register(
        self,
        result: TrialResult,
        test: dict[str, float],
        test_rows: list[dict[str, Any]],
        alias: str = "",
        why: str = "",
    ) -> None:
        """Package a trial and enter the decision; the same one once, however often the sweep is resumed."""
        # not the sweep's own of today: what was extended since then must not make another package of the same model
        folder = trials.folder_of(self.lab.folder, result.number)
        config = trials.read_config(folder)
        store, validation = self._store(result), mirror.validation_metrics(result)
        pipeline = Pipeline(
            scoring=scoring_with(config, result.best.params),
            thresholds=result.best.thresholds,
            healthy_statistics=result.best.statistics,
            validation=validation,
            fingerprints=mirror.fingerprints(result, store),
            sweep=self.config.name,
            trial=result.number,
        )
        package = Path("packages", f"{result.number:04d}")  # two trials may have found one checkpoint
        write_package(self.lab.folder / package, weights_of(self.place, result), config, pipeline)
        metrics = {**mirror.chosen({**validation, **test}), names.OBJECTIVE: result.objective}
        decided = {
            "number": result.number,
            "package": str(package),
            "fingerprint": verify_package(self.lab.folder / package).fingerprint,
            "model": self.config.tracking.registered_model,
            "metrics": {name: value for name, value in metrics.items() if finite(value) is not None},
            "alias": alias,
        }
        if not self._is_decided(decided, ("number", "model", "fingerprint", "alias")):
            shown = label(config, result, scoring_search.volume_rows(folder), test_rows)
            self.lab.enter(
                "register",
                **decided,
                tags=self._tags(result),
                label=shown,
                why=why,
                who=user(),
                identity=events.new_identity(),
            )

    def _is_decided(self, decided: dict[str, Any], by: tuple[str, ...]) -> bool:
        """Whether that was decided before: what a person did with it since then stays."""
        earlier = [
            e.what for e in events.read(self.lab.folder) if e.kind == "register" and e.number == decided["number"]
        ]
        return bool(earlier) and all(earlier[-1].get(name) == decided[name] for name in by)

    def _store(self, result: TrialResult) -> str:
        """Slice store that the trial ran on: a sweep that was forced to go on may have another one today."""
        life = events.life(self.lab.folder, running=False)
        span = life.trials.get(result.number) if life else None
        return str((span.what.get("store") if span else None) or self.place.store.name)

    def _tags(self, result: TrialResult) -> dict[str, str]:
        aim = f"{self.config.search.objective} on {', '.join(objective_datasets(self.config))}"
        searched = {**result.params, **result.best.params}
        settings = {names.safe(f"{names.SETTING}.{path}"): str(value) for path, value in searched.items()}
        own = {names.SWEEP: self.config.name, names.TRIAL: str(result.number), names.AIM: aim}
        return {**own, **code(), **settings}

    def version(self, result: TrialResult) -> int | None:
        """The version that a trial's model became; None if its registration waits for MLflow.

        Raises ``TrackingError`` if MLflow refused it.
        """
        run = self.runs.run(result.number)
        refused = self.lab.mirror.refusals.get(f"{run.key}: registration")
        if refused is None and self.lab.left:
            return None
        found = None if refused else self.lab.mirror.version(run)
        if found is None:
            raise TrackingError(
                f"{self.lab.uri}: trial {result.number:04d} was not registered as "
                f"'{self.config.tracking.registered_model}': {refused or self.lab.last_fault}; its package is "
                f"{self.lab.folder / 'packages' / f'{result.number:04d}'}"
            )
        return found

    def verdict(self, result: TrialResult) -> str:
        """What became of the best trial's model, as the person reads it. Raises as ``version``."""
        number, model = self.version(result), self.config.tracking.registered_model
        if number is None:
            return f"'{model}': its registration waits for MLflow"
        meant = self.lab.mirror.meant(model, ALIAS)
        if meant == number:
            return f"'{model}': version {number} is the {ALIAS}"
        moved = self.lab.mirror.promotion(self.runs.run(result.number))
        why = f": {moved.refused}" if moved and moved.refused else ""
        stays = f"version {meant} stays {ALIAS}" if meant is not None else f"there is no {ALIAS}"
        return f"'{model}': version {number} is registered; {stays}{why}"

    def is_champion(self, result: TrialResult) -> bool:
        """Whether the alias means the best trial's model now."""
        number = self.version(result)
        return number is not None and number == self.lab.mirror.meant(self.config.tracking.registered_model, ALIAS)
