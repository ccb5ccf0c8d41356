"""The label of a registered version in MLflow: what it is, its figures, settings and data, as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from cddpm.config import ExperimentConfig
from cddpm.scoring import statistics
from cddpm.scoring.statistics import FoldResult, Interval
from cddpm.search.trial import TrialResult
from cddpm.text.numbers import counted, setting
from cddpm.tracking import names
from cddpm.tracking.mirror import finite
from cddpm.tracking.surroundings import noted
from cddpm.tracking.version_comparison import CONFIDENCE, HEALTHY, MEASURES, RESAMPLES

MOST_SETTINGS = 12
Rows = Sequence[Mapping[str, Any]]


def markdown(config: ExperimentConfig, result: TrialResult, validation: Rows, test: Rows) -> str:
    """``config``: of the trial; ``validation`` and ``test``: a row per volume, of test only for a sweep's champion."""
    kind = "Conditioned DDPM" if config.model.conditioned else "DDPM"
    chosen = {**result.params, **result.best.params}
    other = {path: value for path, value in noted(config).items() if path not in chosen and not _of_search(path)}
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


def _of_search(path: str) -> bool:
    return path.startswith(("search.", "data."))
