"""From cached reconstructions and one ``ScoringConfig`` to anomaly maps, thresholds and scores.

``Scorer`` is what a search calls thousands of times: it knows a validation (or test) cohort, keeps intermediate results in
a bounded memo so that settings which differ only downstream cost less, and never runs a network.

Convention: a voxel is positive if its score is strictly above the threshold; all voxels of a volume are compared, those
outside of the brain mask have score 0, so a lesion there counts as missed. Ignored voxels (``data.ignored_labels``) are
scored, filtered and joined to components as in a prediction, where nobody knows of them, and then left out of every count.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from cddpm.config import ScoringConfig
from cddpm.errors import DataError
from cddpm.scoring import calibration, ensemble, operating_point
from cddpm.scoring.calibration import Calibration, Statistics
from cddpm.scoring.case import Case, Reconstructions, VolumeStore, case_of
from cddpm.scoring.component_tree import (
    FilteredCounts,
    best_filtered_dice,
    filtered_counts,
    thresholds_by_filtered_dice,
)
from cddpm.scoring.ensemble import ArrayMemo, Ensemble, Member
from cddpm.scoring.metrics import Evaluation, aggregate, mean
from cddpm.scoring.operating_point import Histogram
from cddpm.scoring.postprocess import anomaly_map, component_rule, segment
from cddpm.scoring.residual import anomaly_scores, eroded

Objective = Literal["dice", "auprc"]
Row = dict[str, Any]
T = TypeVar("T")

ALL = "all"
"""Key of the threshold that serves all data sets together (and scans of no known data set)."""
HEALTHY = "healthy"
"""Key of the healthy volumes in aggregates."""
SECONDS = "seconds_per_volume"
_STATISTICS_KEPT = 64


@dataclass(frozen=True)
class Score:
    """Outcome of one point of the search; plain finite numbers only."""

    objective: float
    thresholds: dict[str, float]
    """Per data set, and ``all``."""
    datasets: dict[str, dict[str, float]]
    """Aggregates per data set (see ``metrics.aggregate``), and of ``healthy`` volumes if there are any."""
    seconds: float
    values: dict[str, float] = field(default_factory=dict)
    """What a search may optimise, see ``Scorer.values``."""
    statistics: Statistics | None = None
    """Of healthy residuals, if the settings ask for any: a prediction needs them."""


class Scorer:
    """Scores a cohort under any ``ScoringConfig``.

    ``cache`` none: the image itself takes the place of the residual (intensity baseline). ``unhealthy`` and ``healthy``
    hold volume indices of ``store``. ``threads`` volumes are worked on at once; intermediate arrays take up to
    ``memory_bytes``. Statistics of healthy residuals (``scoring.normalise``) are those of ``healthy``, so that a scorer of
    anything but validation must be given ``calibrated``: the ``calibration`` of the validation scorer, or
    ``calibration.given``. ``seconds_per_pass`` is what one forward pass costs per volume, where it was measured. Raises
    ``DataError`` for a data set without any lesion, or a volume without brain mask.
    """

    def __init__(
        self,
        store: VolumeStore,
        cache: Reconstructions | None,
        unhealthy: Mapping[str, Sequence[int]],
        healthy: Sequence[int] = (),
        threads: int = 1,
        memory_bytes: int = 256 * 2**20,
        calibrated: Calibration | None = None,
        seconds_per_pass: float | None = None,
    ) -> None:
        for name in (ALL, HEALTHY):
            if name in unhealthy:
                raise DataError(
                    f"data set '{name}': this name is taken (thresholds and tables use it); rename the data set"
                )
        self.store = store
        self._threads = threads
        self._memo = ArrayMemo(memory_bytes)
        self._ensemble = None if cache is None else Ensemble(cache, self._memo)
        self._calibrated, self._seconds_per_pass = calibrated, seconds_per_pass
        self._histograms: dict[int, tuple[tuple[Any, ...], Histogram]] = {}
        self._statistics: dict[tuple[Any, ...], Statistics] = {}
        self._calibrating = threading.Lock()
        self._unhealthy = {name: [case_of(store, v, name) for v in volumes] for name, volumes in unhealthy.items()}
        self._healthy = [case_of(store, v, HEALTHY) for v in healthy]
        self._cases = {case.index: case for group in self._unhealthy.values() for case in group}
        self._cases |= {case.index: case for case in self._healthy}
        for name, group in self._unhealthy.items():
            if not any(case.lesion.size for case in group):
                raise DataError(f"data set '{name}': none of its {len(group)} volumes has a lesion voxel to score")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles as what it reads, if that pickles. The copy works with one thread: processes share the CPUs."""
        unhealthy = {name: [case.index for case in group] for name, group in self._unhealthy.items()}
        healthy = [case.index for case in self._healthy]
        cache = None if self._ensemble is None else self._ensemble.cache
        kept = (1, self._memo.capacity_bytes, self._calibrated, self._seconds_per_pass)
        return Scorer, (self.store, cache, unhealthy, healthy, *kept)

    @property
    def datasets(self) -> tuple[str, ...]:
        """Names of the unhealthy data sets."""
        return tuple(self._unhealthy)

    @property
    def guided(self) -> bool:
        """Whether there are unconditional predictions too, so that a guidance scale can be chosen."""
        return self._ensemble is not None and self._ensemble.cache.guided

    @property
    def reconstructs(self) -> bool:
        """False for a scorer without cache, whose ``reconstruction`` says nothing."""
        return self._ensemble is not None

    def cases(self, dataset: str) -> tuple[Case, ...]:
        """Volumes of an unhealthy data set, or the ``healthy`` ones. Raises ``DataError`` for an unknown data set."""
        if dataset == HEALTHY:
            return tuple(self._healthy)
        return tuple(self._unhealthy[self._chosen([dataset])[0]])

    def each(self, function: Callable[[Any], T], items: Sequence[Any]) -> list[T]:
        """``function`` of every item, in their order, worked on by the scorer's threads."""
        if self._threads == 1:
            return [function(item) for item in items]
        with ThreadPoolExecutor(self._threads) as pool:
            return list(pool.map(function, items))

    def anomaly_map(self, volume: int, scoring: ScoringConfig) -> NDArray[np.float16]:
        """Anomaly map (S, H, W) of a volume, >= 0, read-only. Raises ``ArtifactError`` for what was not reconstructed."""
        case = self._cases[volume]
        return self._memo.get(self._map_key(case, scoring), lambda: self._filtered(case, scoring))

    def _map_key(self, case: Case, scoring: ScoringConfig) -> tuple[Any, ...]:
        """The settings on which the anomaly map of a volume depends."""
        width = case.erosion(scoring.erosion_divisor)
        return (case.index, "map", self._upstream(scoring), width, scoring.median_kernel)

    def reconstruction(self, volume: int, scoring: ScoringConfig) -> NDArray[np.float32]:
        """Mean x0 (S, H, W) over the chosen levels and all seeds, inside the brain's bounding box; 0 elsewhere.

        Weighted as ``scoring`` says, whatever is combined, and before intensities are matched. Zeros throughout for a scorer
        without cache.
        """
        full = np.zeros(self.store.mask(volume).shape, np.float32)
        case = self._cases[volume]
        if self._ensemble is not None:
            full[case.box] = self._ensemble.mean(case, scoring)
        return full

    def whole_reconstruction(self, volume: int, scoring: ScoringConfig) -> NDArray[np.float32]:
        """As ``reconstruction``, but of every voxel, far outside of the brain too; read anew each time."""
        if self._ensemble is None:
            return np.zeros(self.store.mask(volume).shape, np.float32)
        return self._ensemble.fresh_mean(replace(self._cases[volume], box=(slice(None),) * 3), scoring)

    def segmentation(self, volume: int, scoring: ScoringConfig, threshold: float) -> NDArray[np.bool_]:
        """Voxels (S, H, W) above ``threshold`` without small components."""
        return segment(
            self.anomaly_map(volume, scoring), threshold, scoring.minimum_component_voxels, component_rule(scoring)
        )

    def counted_segmentation(self, case: Case, scoring: ScoringConfig, threshold: float) -> NDArray[np.bool_]:
        """``segmentation`` without the voxels that count neither way: what is measured."""
        return case.counted(self.segmentation(case.index, scoring, threshold))

    def histograms(self, dataset: str, scoring: ScoringConfig) -> list[Histogram]:
        """Anomaly scores of each volume of a data set, over all voxels; of ``healthy`` ones over brain voxels.

        Raises as ``cases``.
        """
        if dataset != HEALTHY:
            return self.each(lambda case: self._histogram(case, scoring), self.cases(dataset))
        cases, nothing = self.cases(dataset), np.empty(0, np.int64)
        maps = self.each(lambda case: self.anomaly_map(case.index, scoring).ravel()[case.brain], cases)
        return [operating_point.histogram(scores, nothing) for scores in maps]

    def _histogram(self, case: Case, scoring: ScoringConfig) -> Histogram:
        """Of the anomaly scores of all voxels of a volume: thresholds are chosen from it, and curves told; the last is kept."""
        key = self._map_key(case, scoring)
        kept = self._histograms.get(case.index)
        if kept is None or kept[0] != key:
            scores = self.anomaly_map(case.index, scoring)
            kept = key, operating_point.histogram(scores, case.lesion, case.ignored)
            self._histograms[case.index] = kept
        return kept[1]

    def statistics(self, scoring: ScoringConfig) -> Statistics | None:
        """Statistics of healthy residuals under ``scoring``; none if it does not ask for them (``normalise``).

        Raises ``DataError`` without healthy volumes, ``ArtifactError`` if those that were given are missing.
        """
        if scoring.normalise == "none" or self._ensemble is None:
            return None
        if self._calibrated is not None:
            return self._calibrated(scoring)
        key = ensemble.upstream(scoring, self._ensemble.levels(scoring))
        with self._calibrating:
            if key not in self._statistics:
                if len(self._statistics) == _STATISTICS_KEPT:
                    del self._statistics[next(iter(self._statistics))]
                self._statistics[key] = self._measured_statistics(scoring)
            return self._statistics[key]

    def calibration(self, scoring: ScoringConfig) -> Statistics:
        """``statistics``, for another scorer's ``calibrated``. Raises ``ValueError`` if ``scoring`` asks for none."""
        found = self.statistics(scoring)
        if found is None:
            raise ValueError(f"normalise: '{scoring.normalise}' needs no statistics")
        return found

    def _measured_statistics(self, scoring: ScoringConfig) -> Statistics:
        if not self._healthy:
            raise DataError(
                f"scoring.normalise: '{scoring.normalise}' needs healthy validation volumes; this cohort has none"
            )
        count = calibration.bins(scoring.normalise)

        def sums(case: Case) -> calibration.Sums:
            image, _ = self._inputs(case)
            brain = case.counted(self.store.mask(case.index) > 0)[case.box]
            found = [(m.level, m.values) for m in self._residuals(case, scoring)]
            return calibration.sums(found, image, brain, count)

        return calibration.statistics(self.each(sums, self._healthy))

    def thresholds(self, scoring: ScoringConfig, datasets: Sequence[str] | None = None) -> dict[str, float]:
        """Threshold per data set, and for ``all`` of them together, at the operating point of ``scoring`` on this cohort.

        ``val-dice`` is the exact optimum of the mean Dice *before* the component filter, ``val-dice-filtered`` after it;
        ``all`` weighs the data sets equally. ``seed-search`` is the published search over pooled voxels, before the filter
        too. Raises ``DataError`` for an unknown data set, or ``healthy-fpr`` without healthy volumes.
        """
        names = self._chosen(datasets)
        if scoring.operating_point in ("val-dice", "seed-search"):
            groups = {name: self.histograms(name, scoring) for name in names}
            exact = scoring.operating_point == "val-dice"
            search = operating_point.thresholds_by_dice if exact else operating_point.thresholds_by_seed_search
            return search(groups)
        if scoring.operating_point == "val-dice-filtered":
            return thresholds_by_filtered_dice({name: self._filtered_counts(name, scoring) for name in names})
        if scoring.operating_point == "healthy-fpr":
            common = self._healthy_threshold(scoring)
        elif scoring.operating_point == "fixed" and scoring.threshold is not None:
            common = scoring.threshold
        else:
            raise ValueError(f"operating_point: {scoring.operating_point!r} with threshold {scoring.threshold}")
        return dict.fromkeys((*names, ALL), common)

    def score(
        self, scoring: ScoringConfig, objective: Objective = "dice", datasets: Sequence[str] | None = None
    ) -> Score:
        """Choose the operating point on this cohort, and score it there.

        The objective is a mean over the volumes of each data set, then over ``datasets`` (all if none are named).
        ``dice`` is measured after the component filter, at the threshold of the operating point (the exact optimum before
        the filter, or after it). Volumes without lesion have no Dice and no precision-recall curve; they are left out of
        those means. ``oracle_dice``, which costs more than all the rest, is left to ``evaluate``.
        """
        start = time.perf_counter()
        names = self._chosen(datasets)
        thresholds = self.thresholds(scoring, names)
        evaluation = _tabled(self.rows(scoring, thresholds, names), names)
        values = self.values(evaluation, scoring, names)
        if objective not in values:
            raise DataError("no unhealthy data set to score; name at least one in data.unhealthy")
        seconds, found = time.perf_counter() - start, self.statistics(scoring)
        return Score(values[objective], thresholds, evaluation.aggregates, seconds, values, found)

    def values(self, evaluation: Evaluation, scoring: ScoringConfig, datasets: Sequence[str]) -> dict[str, float]:
        """What a search may optimise; a value that is not known is absent.

        - ``dice``, ``auprc``, ``auroc``: means over the volumes of each data set, then over ``datasets``;
        - ``healthy_false_positive_ml``: predicted volume per healthy scan at the threshold of ``all``;
        - ``seconds_per_volume``: see there.
        """
        found: dict[str, float | None] = {
            metric: mean(evaluation.aggregates[name][metric] for name in datasets)
            for metric in ("dice", "auprc", "auroc")
        }
        healthy = [row for row in evaluation.rows if row["dataset"] == HEALTHY]
        volumes = [(row["predicted_voxels"], self._cases[row["volume_index"]].voxel_ml) for row in healthy]
        found["healthy_false_positive_ml"] = mean(voxels * ml for voxels, ml in volumes if ml is not None)
        found[SECONDS] = self.seconds_per_volume(scoring)
        return {name: value for name, value in found.items() if value is not None}

    def seconds_per_volume(self, scoring: ScoringConfig) -> float | None:
        """Of the forward passes behind a prediction with these settings; None if the cost of one is not known."""
        if self._seconds_per_pass is None or self._ensemble is None:
            return None
        return self._seconds_per_pass * self._ensemble.passes(scoring)

    def rows(
        self, scoring: ScoringConfig, thresholds: Mapping[str, float], datasets: Sequence[str], oracle: bool = False
    ) -> list[Row]:
        """One row of numbers per volume of ``datasets`` and per healthy volume; see ``evaluate``.

        Without ``oracle``, what is best over all thresholds after the component filter is left out.
        """
        groups = {name: self._unhealthy[name] for name in datasets} | {HEALTHY: self._healthy}
        work = [(case, _threshold(thresholds, name)) for name, group in groups.items() for case in group]
        return self.each(
            lambda item: self._row(item[0], item[1], scoring) | (self._oracle(item[0], scoring) if oracle else {}), work
        )

    def _oracle(self, case: Case, scoring: ScoringConfig) -> Row:
        """Over all thresholds, with everything else as for ``dice``: so none is below the result that it bounds."""
        best = best_filtered_dice([[self.kept(case, scoring)]]) if case.lesion.size else None
        return {"oracle_dice": best.dice if best else None, "oracle_threshold": best.threshold if best else None}

    def _row(self, case: Case, threshold: float, scoring: ScoringConfig) -> Row:
        prediction = case.counted(self.segmentation(case.index, scoring, threshold))
        counts, in_brain = case.confusions(self.store, prediction)
        h = self._histogram(case, scoring)
        best = operating_point.best_dice([[h]]) if case.lesion.size else None
        return {
            "dataset": case.dataset,
            "volume": case.id,
            "volume_index": case.index,
            "threshold": threshold,
            "lesion_voxels": int(case.lesion.size),
            "predicted_voxels": counts.true_positive + counts.false_positive,
            "dice": counts.dice if best else None,
            "dice_before_component_filter": operating_point.dice_at(h, threshold) if best else None,
            "oracle_dice_before_component_filter": best.dice if best else None,
            "auprc": operating_point.average_precision(h),
            "auroc": operating_point.area_under_roc(h),
            "precision": counts.precision,
            "recall": counts.recall,
            "specificity": in_brain.specificity,
            "false_positive_rate": in_brain.false_positive_rate,
            "false_discovery_rate": counts.false_discovery_rate,
        }

    def _chosen(self, datasets: Sequence[str] | None) -> tuple[str, ...]:
        names = tuple(datasets) if datasets else self.datasets
        for name in names:
            if name not in self._unhealthy:
                raise DataError(f"data set '{name}' is not in this cohort; there are {', '.join(self.datasets)}")
        return names

    def _filtered_counts(self, dataset: str, scoring: ScoringConfig) -> list[FilteredCounts]:
        with_lesion = [case for case in self._unhealthy[dataset] if case.lesion.size]
        return self.each(lambda case: self.kept(case, scoring), with_lesion)

    def kept(self, case: Case, scoring: ScoringConfig) -> FilteredCounts:
        """What the component filter keeps of a volume at every threshold."""
        scores = self.anomaly_map(case.index, scoring)
        rule = component_rule(scoring)
        return filtered_counts(scores, case.lesion, scoring.minimum_component_voxels, rule, case.ignored)

    def _healthy_threshold(self, scoring: ScoringConfig) -> float:
        if not self._healthy:
            raise DataError("operating_point 'healthy-fpr' needs healthy validation volumes; this cohort has none")
        return operating_point.quantile_threshold(
            self.histograms(HEALTHY, scoring), scoring.healthy_false_positive_rate
        )

    def _upstream(self, scoring: ScoringConfig) -> tuple[Any, ...]:
        """The settings on which the residual depends."""
        if self._ensemble is None:
            return ("image",)
        return ensemble.upstream(scoring, self._ensemble.levels(scoring))

    def _filtered(self, case: Case, scoring: ScoringConfig) -> NDArray[np.float16]:
        _, _, upstream, width, kernel = self._map_key(case, scoring)
        mask = self._memo.get((case.index, "mask", width), lambda: eroded(self.store.mask(case.index), width))
        residual = self._memo.get((case.index, "residual", upstream), lambda: self._residual(case, scoring))
        full = np.zeros(mask.shape, np.float16)
        full[case.box] = residual
        return anomaly_map(full, mask, kernel)

    def _residual(self, case: Case, scoring: ScoringConfig) -> NDArray[np.float16]:
        image, _ = self._inputs(case)
        if self._ensemble is None:
            return anomaly_scores(image.astype(np.float32))
        return ensemble.joined(self._residuals(case, scoring), image, scoring, self.statistics(scoring))

    def _residuals(self, case: Case, scoring: ScoringConfig) -> list[Member]:
        if self._ensemble is None:
            raise ValueError("a scorer without reconstructions has no residuals of them")
        return ensemble.residuals(*self._inputs(case), self._ensemble.members(case, scoring), scoring)

    def _inputs(self, case: Case) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
        """Image and brain mask inside the box."""
        return self.store.image(case.index)[case.box], self.store.mask(case.index)[case.box] > 0


def _threshold(thresholds: Mapping[str, float], name: str) -> float:
    if name not in thresholds and ALL not in thresholds:
        raise DataError(f"no threshold for data set '{name}' and none for '{ALL}'; there are {sorted(thresholds)}")
    return thresholds.get(name, thresholds.get(ALL, 0.0))


def evaluate(
    scorer: Scorer, scoring: ScoringConfig, thresholds: Mapping[str, float], datasets: Sequence[str] | None = None
) -> Evaluation:
    """Measure a cohort (test, say) at thresholds that were fixed elsewhere (on validation).

    A data set (and the healthy volumes) without a threshold of its own takes that of ``all``. Per volume: ``dice`` after
    the component filter and before it, ``oracle_dice`` and ``oracle_dice_before_component_filter`` (each at the best
    threshold of this very volume: no honest result, a bound of the Dice of that name), ``auprc``, ``auroc``, precision,
    recall, false discovery rate over all voxels; specificity and false positive rate over brain voxels. Numbers that are
    undefined are ``None`` in rows and left out of aggregates, which say how many
    volumes they are over. Raises ``DataError`` for a missing threshold or an unknown data set.
    """
    names = list(datasets or scorer.datasets)
    return _tabled(scorer.rows(scoring, thresholds, names, oracle=True), names)


def _tabled(rows: list[Row], names: Sequence[str]) -> Evaluation:
    groups = {name: [row for row in rows if row["dataset"] == name] for name in [*names, HEALTHY]}
    return Evaluation(rows, {name: aggregate(group) for name, group in groups.items() if group})
