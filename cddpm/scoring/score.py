"""From cached reconstructions and one ``ScoringConfig`` to anomaly maps, thresholds and scores.

``Scorer`` is what a search calls thousands of times: it knows a validation (or test) cohort, keeps intermediate results in
a bounded memo so that settings which differ only downstream cost less, and never runs a network.

Convention: a voxel is positive if its score is strictly above the threshold; all voxels of a volume are compared, those
outside of the brain mask have score 0, so a lesion there counts as missed.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from cddpm.config import ScoringConfig
from cddpm.errors import DataError
from cddpm.scoring import operating_point
from cddpm.scoring.memo import ArrayMemo
from cddpm.scoring.metrics import aggregate, confusion, mean
from cddpm.scoring.operating_point import Histogram
from cddpm.scoring.postprocess import anomaly_map, bounding_box, remove_small_components, segment
from cddpm.scoring.residual import eroded_mask, erosion_iterations, residual_map

Objective = Literal["dice", "auprc"]
Box = tuple[slice, slice, slice]
Row = dict[str, Any]
T = TypeVar("T")

ALL = "all"
"""Key of the threshold that serves all data sets together (and scans of no known data set)."""
HEALTHY = "healthy"
"""Key of the healthy volumes in aggregates."""


class VolumeStore(Protocol):
    """The part of the slice store that scoring reads; (S, H, W) arrays by volume index."""

    @property
    def volumes(self) -> Sequence[Any]: ...
    def image(self, v: int) -> NDArray[np.float16]: ...
    def mask(self, v: int) -> NDArray[np.uint8]: ...
    def segmentation(self, v: int) -> NDArray[np.uint8]: ...


class Reconstructions(Protocol):
    """The part of a reconstruction cache that scoring reads; (S, H, W) arrays by volume id, noise level and seed."""

    @property
    def levels(self) -> tuple[int, ...]: ...
    @property
    def seeds(self) -> tuple[int, ...]: ...
    def c(self, volume: str, level: int, seed: int) -> NDArray[np.float16]: ...
    def d(self, volume: str, level: int, seed: int) -> NDArray[np.float16]: ...


@dataclass(frozen=True)
class Case:
    """One volume with what does not depend on the scoring settings."""

    index: int
    id: str
    dataset: str
    box: Box
    """Bounding box of the brain mask: nothing outside of it can score."""
    brain: NDArray[np.int64]
    """Flat indices of brain voxels."""
    lesion: NDArray[np.int64]
    """Flat indices of lesion voxels."""


@dataclass(frozen=True)
class Score:
    """Outcome of one point of the search; plain finite numbers only."""

    objective: float
    thresholds: dict[str, float]
    """Per data set, and ``all``."""
    datasets: dict[str, dict[str, float]]
    """Aggregates per data set (see ``metrics.aggregate``), and of ``healthy`` volumes if there are any."""
    seconds: float


@dataclass(frozen=True)
class Evaluation:
    """Per-volume table and aggregates per data set, at given thresholds."""

    rows: list[Row]
    aggregates: dict[str, dict[str, float]]


class Scorer:
    """Scores a cohort under any ``ScoringConfig``.

    ``cache`` none: the image itself takes the place of the residual (intensity baseline). ``unhealthy`` and ``healthy``
    hold volume indices of ``store``. ``threads`` volumes are worked on at once; intermediate arrays take up to
    ``memory_bytes``. Raises ``DataError`` for a data set without any lesion, or a volume without brain mask.
    """

    def __init__(
        self,
        store: VolumeStore,
        cache: Reconstructions | None,
        unhealthy: Mapping[str, Sequence[int]],
        healthy: Sequence[int] = (),
        threads: int = 1,
        memory_bytes: int = 256 * 2**20,
    ) -> None:
        for name in (ALL, HEALTHY):
            if name in unhealthy:
                raise DataError(
                    f"data set '{name}': this name is taken (thresholds and tables use it); rename the data set"
                )
        self.store = store
        self._cache = cache
        self._threads = threads
        self._memo = ArrayMemo(memory_bytes)
        self._unhealthy = {name: [self._case(v, name) for v in volumes] for name, volumes in unhealthy.items()}
        self._healthy = [self._case(v, HEALTHY) for v in healthy]
        self._cases = {case.index: case for group in self._unhealthy.values() for case in group}
        self._cases |= {case.index: case for case in self._healthy}
        for name, group in self._unhealthy.items():
            if not any(case.lesion.size for case in group):
                raise DataError(f"data set '{name}': none of its {len(group)} volumes has a lesion voxel to score")

    @property
    def datasets(self) -> tuple[str, ...]:
        """Names of the unhealthy data sets."""
        return tuple(self._unhealthy)

    @property
    def reconstructs(self) -> bool:
        """False for a scorer without cache, whose ``reconstruction`` says nothing."""
        return self._cache is not None

    def cases(self, dataset: str) -> tuple[Case, ...]:
        """Volumes of an unhealthy data set, or the ``healthy`` ones. Raises ``DataError`` for an unknown data set."""
        if dataset == HEALTHY:
            return tuple(self._healthy)
        return tuple(self._unhealthy[self._chosen([dataset])[0]])

    def each(self, function: Callable[[Any], T], items: Sequence[Any]) -> list[T]:
        """``function`` of every item, in their order, worked on by the scorer's threads."""
        return self._map(function, items)

    def anomaly_map(self, volume: int, scoring: ScoringConfig) -> NDArray[np.float16]:
        """Anomaly map (S, H, W) of a volume, >= 0, read-only. Raises ``ArtifactError`` for what was not reconstructed."""
        case = self._cases[volume]
        upstream = self._upstream(scoring)
        width = erosion_iterations(self.store.mask(volume).shape, scoring.erosion_divisor)
        key = (volume, "map", upstream, width, scoring.median_kernel)
        return self._memo.get(key, lambda: self._filtered(case, scoring, upstream, width))

    def reconstruction(self, volume: int, scoring: ScoringConfig) -> NDArray[np.float32]:
        """Mean x0 (S, H, W) over the chosen levels and all seeds, inside the brain's bounding box; 0 elsewhere.

        Zeros throughout for a scorer without cache.
        """
        full = np.zeros(self.store.mask(volume).shape, np.float32)
        case = self._cases[volume]
        if self._cache is not None:
            full[case.box] = self._mean_x0(case, scoring)
        return full

    def whole_reconstruction(self, volume: int, scoring: ScoringConfig) -> NDArray[np.float32]:
        """As ``reconstruction``, but of every voxel, far outside of the brain too; read anew each time."""
        if self._cache is None:
            return np.zeros(self.store.mask(volume).shape, np.float32)
        case, levels = replace(self._cases[volume], box=(slice(None),) * 3), self._levels(scoring)
        mean_c = self._mean(case, "c", levels)
        if scoring.guidance_scale == 1.0:
            return mean_c
        return mean_c + np.float32(scoring.guidance_scale - 1.0) * self._mean(case, "d", levels)

    def segmentation(self, volume: int, scoring: ScoringConfig, threshold: float) -> NDArray[np.bool_]:
        """Voxels (S, H, W) above ``threshold`` without small components."""
        return segment(self.anomaly_map(volume, scoring), threshold, scoring.minimum_component_voxels)

    def thresholds(self, scoring: ScoringConfig, datasets: Sequence[str] | None = None) -> dict[str, float]:
        """Threshold per data set, and for ``all`` of them together, at the operating point of ``scoring`` on this cohort.

        ``val-dice`` is the exact optimum of the mean Dice *before* the component filter; ``all`` weighs the data sets
        equally. ``seed-search`` is the published search over pooled voxels, before the filter too. Raises ``DataError``
        for an unknown data set, or ``healthy-fpr`` without healthy volumes.
        """
        names = self._chosen(datasets)
        if scoring.operating_point in ("val-dice", "seed-search"):
            groups = {name: self._histograms(self._unhealthy[name], scoring) for name in names}
            exact = scoring.operating_point == "val-dice"
            search = operating_point.thresholds_by_dice if exact else operating_point.thresholds_by_seed_search
            return search(groups)
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
        ``dice`` is measured after the component filter, at the threshold that is the exact optimum before it. Volumes
        without lesion have no Dice and no precision-recall curve; they are left out of those means.
        """
        start = time.perf_counter()
        names = self._chosen(datasets)
        thresholds = self.thresholds(scoring, names)
        evaluation = evaluate(self, scoring, thresholds, names)
        value = mean(evaluation.aggregates[name][objective] for name in names)
        if value is None:
            raise DataError("no unhealthy data set to score; name at least one in data.unhealthy")
        return Score(value, thresholds, evaluation.aggregates, time.perf_counter() - start)

    def rows(self, scoring: ScoringConfig, thresholds: Mapping[str, float], datasets: Sequence[str]) -> list[Row]:
        """One row of numbers per volume of ``datasets`` and per healthy volume; see ``evaluate``."""
        groups = {name: self._unhealthy[name] for name in datasets} | {HEALTHY: self._healthy}
        work = [(case, _threshold(thresholds, name)) for name, group in groups.items() for case in group]
        return self._map(lambda item: self._row(item[0], item[1], scoring), work)

    def _row(self, case: Case, threshold: float, scoring: ScoringConfig) -> Row:
        scores = self.anomaly_map(case.index, scoring)
        truth = self.store.segmentation(case.index) > 0
        above = segment(scores, threshold, 0)
        prediction = remove_small_components(above, scoring.minimum_component_voxels)
        counts = confusion(prediction, truth)
        in_brain = confusion(prediction.ravel()[case.brain], truth.ravel()[case.brain])
        h = operating_point.histogram(scores, case.lesion)
        oracle = operating_point.best_dice([[h]]) if case.lesion.size else None
        return {
            "dataset": case.dataset,
            "volume": case.id,
            "volume_index": case.index,
            "threshold": threshold,
            "lesion_voxels": int(case.lesion.size),
            "predicted_voxels": counts.true_positive + counts.false_positive,
            "dice": counts.dice if oracle else None,
            "dice_before_component_filter": confusion(above, truth).dice if oracle else None,
            "oracle_dice": oracle.dice if oracle else None,
            "oracle_threshold": oracle.threshold if oracle else None,
            "auprc": operating_point.average_precision(h),
            "auroc": operating_point.area_under_roc(h),
            "precision": counts.precision,
            "recall": counts.recall,
            "specificity": in_brain.specificity,
            "false_positive_rate": in_brain.false_positive_rate,
            "false_discovery_rate": counts.false_discovery_rate,
        }

    def _case(self, v: int, dataset: str) -> Case:
        record = self.store.volumes[v]
        brain = self.store.mask(v) > 0
        box = bounding_box(brain)
        if box is None:
            raise DataError(f"volume '{record.id}' of {dataset}: its brain mask is empty; there is nothing to score")
        return Case(v, record.id, dataset, box, np.flatnonzero(brain), np.flatnonzero(self.store.segmentation(v)))

    def _chosen(self, datasets: Sequence[str] | None) -> tuple[str, ...]:
        names = tuple(datasets) if datasets else self.datasets
        for name in names:
            if name not in self._unhealthy:
                raise DataError(f"data set '{name}' is not in this cohort; there are {', '.join(self.datasets)}")
        return names

    def _map(self, function: Callable[[Any], T], items: Sequence[Any]) -> list[T]:
        if self._threads == 1:
            return [function(item) for item in items]
        with ThreadPoolExecutor(self._threads) as pool:
            return list(pool.map(function, items))

    def _histograms(self, cases: Sequence[Case], scoring: ScoringConfig) -> list[Histogram]:
        return self._map(
            lambda case: operating_point.histogram(self.anomaly_map(case.index, scoring), case.lesion), cases
        )

    def _healthy_threshold(self, scoring: ScoringConfig) -> float:
        if not self._healthy:
            raise DataError("operating_point 'healthy-fpr' needs healthy validation volumes; this cohort has none")
        nothing = np.empty(0, np.int64)
        brains = self._map(
            lambda case: operating_point.histogram(self.anomaly_map(case.index, scoring).ravel()[case.brain], nothing),
            self._healthy,
        )
        return operating_point.quantile_threshold(brains, scoring.healthy_false_positive_rate)

    def _upstream(self, scoring: ScoringConfig) -> tuple[Any, ...]:
        """The settings on which the residual depends."""
        if self._cache is None:
            return ("image",)
        return (self._levels(scoring), scoring.guidance_scale, scoring.residual)

    def _levels(self, scoring: ScoringConfig) -> tuple[int, ...]:
        reconstructed = self._cache.levels if self._cache else ()
        return tuple(sorted(set(scoring.noise_levels or reconstructed)))

    def _filtered(
        self, case: Case, scoring: ScoringConfig, upstream: tuple[Any, ...], width: int
    ) -> NDArray[np.float16]:
        mask = self._memo.get(
            (case.index, "mask", width), lambda: eroded_mask(self.store.mask(case.index), scoring.erosion_divisor)
        )
        residual = self._memo.get((case.index, "residual", upstream), lambda: self._residual(case, scoring))
        full = np.zeros(mask.shape, np.float16)
        full[case.box] = residual
        return anomaly_map(full, mask, scoring.median_kernel)

    def _residual(self, case: Case, scoring: ScoringConfig) -> NDArray[np.float16]:
        image = self.store.image(case.index)[case.box]
        if self._cache is None:
            return residual_map(image, np.zeros(image.shape, np.float32), "positive")
        return residual_map(image, self._mean_x0(case, scoring), scoring.residual)

    def _mean_x0(self, case: Case, scoring: ScoringConfig) -> NDArray[np.float32]:
        """Mean over levels and seeds inside the box: guidance is affine, so the means of c and d are kept, for any s."""
        levels = self._levels(scoring)
        c = self._memo.get((case.index, "c", levels), lambda: self._mean(case, "c", levels))
        if scoring.guidance_scale == 1.0:
            return c
        d = self._memo.get((case.index, "d", levels), lambda: self._mean(case, "d", levels))
        return c + np.float32(scoring.guidance_scale - 1.0) * d

    def _mean(self, case: Case, branch: Literal["c", "d"], levels: tuple[int, ...]) -> NDArray[np.float32]:
        if self._cache is None:
            raise ValueError("a scorer without reconstructions has no mean reconstruction")
        read = self._cache.c if branch == "c" else self._cache.d
        arrays = [read(case.id, level, seed)[case.box] for level in levels for seed in self._cache.seeds]
        total = arrays[0].astype(np.float32)
        for array in arrays[1:]:
            total += array
        total /= len(arrays)
        return total


def _threshold(thresholds: Mapping[str, float], name: str) -> float:
    if name not in thresholds and ALL not in thresholds:
        raise DataError(f"no threshold for data set '{name}' and none for '{ALL}'; there are {sorted(thresholds)}")
    return thresholds.get(name, thresholds.get(ALL, 0.0))


def evaluate(
    scorer: Scorer, scoring: ScoringConfig, thresholds: Mapping[str, float], datasets: Sequence[str] | None = None
) -> Evaluation:
    """Measure a cohort (test, say) at thresholds that were fixed elsewhere (on validation).

    A data set (and the healthy volumes) without a threshold of its own takes that of ``all``. Per volume: ``dice`` after
    the component filter and before it, ``oracle_dice`` (at the best threshold of this very volume: no honest result, a
    bound), ``auprc``, ``auroc``, precision, recall, false discovery rate over all voxels; specificity and false positive
    rate over brain voxels. Numbers that are undefined are ``None`` in rows and left out of aggregates, which say how many
    volumes they are over. Raises ``DataError`` for a missing threshold or an unknown data set.
    """
    names = list(datasets or scorer.datasets)
    rows = scorer.rows(scoring, thresholds, names)
    groups = {name: [row for row in rows if row["dataset"] == name] for name in [*names, HEALTHY]}
    return Evaluation(rows, {name: aggregate(group) for name, group in groups.items() if group})


def intensity_threshold_baseline(
    store: VolumeStore,
    unhealthy: Mapping[str, Sequence[int]],
    scoring: ScoringConfig,
    objective: Objective = "dice",
    healthy: Sequence[int] = (),
) -> Score:
    """What thresholding the image itself reaches with the same erosion, median, component filter and operating point.

    Settings about reconstructions (levels, guidance, residual) have no meaning here. For a test cohort use
    ``evaluate(Scorer(store, None, ...), scoring, thresholds)`` with the thresholds of this score.
    """
    return Scorer(store, None, unhealthy, healthy).score(scoring, objective)
