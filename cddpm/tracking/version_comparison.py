"""Registered versions side by side: settings that differ, scores with intervals, and whether a difference may be chance.

Scores are those of the table that each version's run keeps: one row per volume, measured at the operating point of
validation. A subject's volumes are averaged; what is resampled or flipped is the subject.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from cddpm import artifact
from cddpm.errors import ArtifactError
from cddpm.scoring import statistics
from cddpm.scoring.statistics import Comparison, FoldResult, Interval
from cddpm.tracking import names
from cddpm.tracking.catalogue import Version
from cddpm.tracking.mirror import PLACES
from cddpm.tracking.package_files import CONFIG, PIPELINE, read_file
from cddpm.tracking.query import texts
from cddpm.tracking.registry import Registry

MEASURES = ("dice", "auprc")
RESAMPLES = 10_000
CONFIDENCE = 0.95
HEALTHY = "healthy"
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Score:
    """One measure on one data set, of every version in turn."""

    dataset: str
    measure: str
    intervals: tuple[Interval, ...]
    against_first: tuple[Comparison | None, ...]
    """Each version minus the first; none for the first itself. ``adjusted`` by Holm over all comparisons of the table."""


@dataclass(frozen=True)
class SideBySide:
    """Versions in the order in which they were named; the first is what the others are compared with."""

    versions: tuple[Version, ...]
    split: str
    settings: dict[str, tuple[str | None, ...]]
    """Dotted path -> value of each version; those that are equal are left out."""
    metrics: dict[str, tuple[float | None, ...]]
    scores: tuple[Score, ...]
    notes: tuple[str, ...]
    """What could not be compared, and why."""

    def plain(self) -> dict[str, Any]:
        """As JSON data."""
        versions = [version.plain() for version in self.versions]
        return {**asdict(self), "versions": versions, "chosen_on_test": self.split == "test"}


def side_by_side(registry: Registry, versions: Sequence[Version], split: str = "val") -> SideBySide:
    """Compare versions on ``split``. Raises ``ArtifactError`` for a package that was altered or is gone."""
    settings = [_settings(registry, version) for version in versions]
    tables = [_unhealthy(registry, version, split) for version in versions]
    notes = [
        f"version {version.number}: its run has no table of {split} volumes, so there is no interval and no test"
        for version, rows in zip(versions, tables, strict=True)
        if rows is None
    ]
    stores = {version.tags.get(names.FINGERPRINT_STORE) for version in versions}
    if len(stores) > 1:
        notes.append("the versions were measured on different slice stores: only subjects of the same name are paired")
    return SideBySide(
        tuple(versions), split, _different(settings), _metrics(versions, split), _scores(versions, tables), tuple(notes)
    )


def _settings(registry: Registry, version: Version) -> dict[str, str]:
    """Of the package: its configuration with the scoring that was found best."""
    files = _package_files(registry, version)
    config = {**files[CONFIG], "scoring": files[PIPELINE]["scoring"]}
    return {path: value for path, value in texts(config).items() if not path.startswith(PLACES)}


def _package_files(registry: Registry, version: Version) -> dict[str, Any]:
    where = f"version {version.number} of '{registry.name}'"
    try:
        content = {name: registry.file_of_package(version, name) for name in (artifact.MANIFEST, CONFIG, PIPELINE)}
        digests = json.loads(content[artifact.MANIFEST] or b"{}").get("files", {})
        found = {}
        for name in (CONFIG, PIPELINE):
            if hashlib.sha256(content[name] or b"").hexdigest() != digests.get(name):
                raise ArtifactError(f"{name} is missing or was altered")
            found[name] = json.loads(content[name] or b"")
    except (ArtifactError, ValueError) as error:
        raise ArtifactError(
            f"{where}: its registered package is damaged or gone: {error}. Nothing was compared"
        ) from None
    return found


def volumes(registry: Registry, version: Version, split: str = "val") -> Rows | None:
    """Rows of numbers, one per volume of ``split``, that the version's run keeps beside its metrics; None if it keeps none.

    Of test only a sweep's champion has any. Raises ``ArtifactError`` for a damaged table, ``TrackingError`` if MLflow does not
    answer.
    """
    run = registry.run(version.run_id)
    if run is not None and split == "test":
        sweep = registry.run(run.tags.get(names.PARENT, ""))
        run = sweep if sweep is not None and sweep.tags.get(names.CHAMPION) == version.trial_name else None
    content = None if run is None else read_file(run.artifacts, names.VOLUMES[split], registry.uri)
    if run is None or content is None:
        return None
    try:
        table = json.loads(content)
        rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"run {run.id}: its table of volumes is damaged ({error})") from error
    return [row for row in rows if row.get("contender") in (None, names.CONTENDER)]


def _unhealthy(registry: Registry, version: Version, split: str) -> Rows | None:
    rows = volumes(registry, version, split)
    return None if rows is None else [row for row in rows if row.get("dataset") != HEALTHY]


def _different(settings: Sequence[Mapping[str, str]]) -> dict[str, tuple[str | None, ...]]:
    paths = sorted({path for one in settings for path in one})
    values = {path: tuple(one.get(path) for one in settings) for path in paths}
    return {path: value for path, value in values.items() if len(set(value)) > 1}


def _metrics(versions: Sequence[Version], split: str) -> dict[str, tuple[float | None, ...]]:
    known = {key for version in versions for key in version.metrics}
    wanted = [key for key in known if key.startswith(f"{split}/") or (split == "val" and key == names.OBJECTIVE)]
    return {key: tuple(version.metrics.get(key) for version in versions) for key in sorted(wanted)}


def _scores(versions: Sequence[Version], tables: Sequence[Rows | None]) -> tuple[Score, ...]:
    datasets = sorted({str(row["dataset"]) for rows in tables for row in rows or ()})
    drafts = [_score(versions, tables, dataset, measure) for dataset in datasets for measure in MEASURES]
    drafts = [score for score in drafts if any(interval.subjects for interval in score.intervals)]
    p_values = {
        (place, index): comparison.p
        for place, score in enumerate(drafts)
        for index, comparison in enumerate(score.against_first)
        if comparison is not None
    }
    adjusted = statistics.holm(p_values)
    return tuple(
        replace(
            score,
            against_first=tuple(
                None if c is None else replace(c, adjusted=adjusted.get((place, index)))
                for index, c in enumerate(score.against_first)
            ),
        )
        for place, score in enumerate(drafts)
    )


def _score(versions: Sequence[Version], tables: Sequence[Rows | None], dataset: str, measure: str) -> Score:
    results = [
        FoldResult(f"version {version.number}", dataset, 0, [r for r in rows or () if r["dataset"] == dataset], {})
        for version, rows in zip(versions, tables, strict=True)
    ]
    intervals = [
        statistics.bootstrap_interval(statistics.subject_means([result], measure).values(), RESAMPLES, CONFIDENCE)
        for result in results
    ]
    first, *others = results
    tests = [statistics.compare(statistics.paired([other], [first], measure), RESAMPLES) for other in others]
    return Score(dataset, measure, tuple(intervals), (None, *tests))
