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
from cddpm.search.point import scoring_with
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
class Registered:
    """What became of the best trial's model in MLflow."""

    version: int | None
    """None: its registration waits for MLflow."""
    promoted: bool
    """Whether the alias means it now; not if a better model, or one of another aim, stays."""
    said: str
    """As the person reads it."""
    undelivered: int
    """Runs that MLflow does not show whole yet."""


def register(
    config: ExperimentConfig, place: stages.Place, lab: Lab, results: Sequence[TrialResult], winner: Contender
) -> Registered:
    """Register the best trials of a sweep under their validation metrics, give the first the alias, and close the lab book.

    Only the ``winner``, which is ``results[0]``, has test metrics. What is decided is entered once, however often the sweep
    is resumed; ``lab`` publishes it. Raises ``TrackingError`` if MLflow refuses the first.
    """
    best, *others = results[: max(1, config.tracking.registered_trials)]
    why = f"best {config.search.objective} on validation of sweep {config.name}"
    _decide(
        config, place, lab, best, mirror.test_metrics(winner, config), winner.test.rows, {"alias": ALIAS, "why": why}
    )
    for other in others:
        _decide(config, place, lab, other, {}, [], {"alias": "", "why": ""})
    left = lab.close()

    model, published, run = (
        config.tracking.registered_model,
        lab.mirror,
        SweepMirror(lab.folder).run(best.number),
    )
    refused = published.refusals.get(f"{run.key}: registration")
    if refused is None and left:
        return Registered(None, False, f"'{model}': its registration waits for MLflow", left)
    version = None if refused else published.version(run)
    if version is None:
        raise TrackingError(
            f"{lab.uri}: trial {best.number:04d} was not registered as '{model}': {refused or lab.last_fault}; its "
            f"package is {lab.folder / 'packages' / f'{best.number:04d}'}"
        )
    meant, moved = published.meant(model, ALIAS), published.promotion(run)
    if meant == version:
        return Registered(version, True, f"'{model}': version {version} is the {ALIAS}", left)
    because = f": {moved.refused}" if moved and moved.refused else ""
    stays = f"version {meant} stays {ALIAS}" if meant is not None else f"there is no {ALIAS}"
    return Registered(version, False, f"'{model}': version {version} is registered; {stays}{because}", left)


def _decide(
    config: ExperimentConfig,
    place: stages.Place,
    lab: Lab,
    result: TrialResult,
    test: Mapping[str, float],
    test_rows: Rows,
    promotion: Mapping[str, str],
) -> None:
    """Package a trial and enter that it is registered."""
    # not the sweep's own configuration of today: what was extended since then must not make another package of the same model
    folder = trials.folder_of(lab.folder, result.number)
    own, validation = trials.read_config(folder), mirror.validation_metrics(result)
    pipeline = Pipeline(
        scoring=scoring_with(own, result.best.params),
        thresholds=result.best.thresholds,
        healthy_statistics=result.best.statistics,
        validation=validation,
        fingerprints=mirror.fingerprints(result, _store(lab.folder, result, place)),
        sweep=config.name,
        trial=result.number,
    )
    package = Path("packages", f"{result.number:04d}")  # two trials may have found one checkpoint
    write_package(lab.folder / package, weights_of(place, result), own, pipeline)
    metrics = {**mirror.chosen({**validation, **test}), names.OBJECTIVE: result.objective}
    decided = {
        "number": result.number,
        "package": str(package),
        "fingerprint": verify_package(lab.folder / package).fingerprint,
        "model": config.tracking.registered_model,
        "metrics": mirror.finite_only(metrics),
        **promotion,
    }
    earlier = [e.what for e in events.read(lab.folder) if e.kind == "register" and e.number == result.number]
    same = ("model", "fingerprint", "alias")
    if earlier and all(earlier[-1].get(name) == decided[name] for name in same):
        return  # what a person did with it since then stays
    lab.enter(
        "register",
        **decided,
        tags=_tags(config, result),
        label=label(own, result, scoring_search.volume_rows(folder), test_rows),
        who=user(),
        identity=events.new_identity(),
    )


def _store(sweep: Path, result: TrialResult, place: stages.Place) -> str:
    """Slice store that the trial ran on: a sweep that was forced to go on may have another one today."""
    life = events.life(sweep, running=False)
    span = life.trials.get(result.number) if life else None
    return str((span.what.get("store") if span else None) or place.store.name)


def _tags(config: ExperimentConfig, result: TrialResult) -> dict[str, str]:
    aim = f"{config.search.objective} on {', '.join(config.objective_datasets)}"
    searched = {**result.params, **result.best.params}
    settings = {names.safe(f"{names.SETTING}.{path}"): str(value) for path, value in searched.items()}
    return {names.SWEEP: config.name, names.TRIAL: str(result.number), names.AIM: aim, **code(), **settings}
