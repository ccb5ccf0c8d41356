"""The thorough evaluation of one cohort: everything a reviewer asks about, per volume and per data set.

``score.evaluate`` is what a search calls thousands of times; this is called once, for the chosen configuration. Every
threshold comes from validation, save those of the columns whose names say ``oracle``. ``MEASURES`` tells what each column
means. A number that is undefined is ``None``, and the mean over volumes is one over the others, whose number stands
beside it (``hd95_volumes``).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cddpm.config import EvaluationConfig, ScoringConfig
from cddpm.errors import DataError
from cddpm.scoring import metrics, operating_point
from cddpm.scoring.component_tree import FilteredCounts, best_filtered_dice
from cddpm.scoring.glossary import at_rate
from cddpm.scoring.metrics import (
    METRICS,
    Components,
    Detection,
    components,
    confusion,
    detect,
    fidelity,
    hd95_mm,
    lesion_error,
    mean,
    standard_deviation,
)
from cddpm.scoring.operating_point import Histogram, histogram
from cddpm.scoring.score import HEALTHY, Case, Row, Scorer

Aggregates = dict[str, float | None]

_AVERAGED = (
    *METRICS,
    "auprc_brain",
    "auroc_brain",
    "lesion_ml",
    "predicted_ml",
    "false_positive_ml",
    "lesion_fraction",
    "lesion_recall",
    "lesion_precision",
    "lesion_f1",
    "hd95",
    "l1",
    "l2",
    "ssim",
    "psnr",
    "l1_lesion",
    "l1_tissue",
    "l1_ratio",
    "brain_unseen",
    "brain_unseen_ml",
    "lesion_unseen_ml",
    "dice_with_unseen",
    "recall_with_unseen",
)
_AVERAGED_AT_RATES = ("dice", "lesion_recall", "false_positive_rate", "false_positive_ml")
_SUMMED = ("lesion_voxels", "predicted_voxels", "lesions", "lesions_found", "components", "components_right")


@dataclass(frozen=True)
class Measured:
    """Numbers of one cohort at operating points that were fixed elsewhere; plain numbers and None."""

    rows: list[Row]
    """One per volume, unhealthy data sets first, healthy volumes last; all have the same columns."""
    datasets: dict[str, Aggregates]
    """Per data set, and ``healthy`` if there are such volumes: means over volumes (with ``_std``, the population standard
    deviation, and ``_volumes``), sums of counts, and what is pooled over voxels or lesions of the whole data set."""


@dataclass(frozen=True)
class _Volume:
    """Row of one volume, and its scores for pooling: over all voxels, and over brain voxels."""

    row: Row
    whole: Histogram
    brain: Histogram
    kept: FilteredCounts | None


def measure(
    scorer: Scorer,
    scoring: ScoringConfig,
    thresholds: Mapping[str, float],
    evaluation: EvaluationConfig,
    validation: Scorer,
) -> Measured:
    """Measure all volumes of ``scorer`` at ``thresholds`` (per data set or ``all``, see ``score.evaluate``).

    ``validation`` scores the validation cohort of the same model: its healthy brains give the thresholds of the healthy
    false-positive rates. The numbers of a volume depend on no other volume. Raises ``DataError`` for a missing threshold,
    or rates without healthy validation volumes; ``ArtifactError`` for a volume that was not reconstructed.
    """
    at_rates = thresholds_at_rates(validation, scoring, evaluation.healthy_false_positive_rates)
    bench = _Bench(scorer, scoring, evaluation, at_rates)
    names = [*scorer.datasets, *([HEALTHY] if scorer.cases(HEALTHY) else [])]
    cases = {case.index: case for name in names for case in scorer.cases(name)}
    basic = scorer.rows(scoring, thresholds, scorer.datasets)
    volumes = scorer.each(lambda row: bench.volume(cases[row["volume_index"]], row), basic)
    groups = {name: [v for v in volumes if v.row["dataset"] == name] for name in names}
    datasets = {name: bench.aggregate(group) | bench.on_healthy(group) for name, group in groups.items()}
    return Measured([v.row for v in volumes], datasets)


def thresholds_at_rates(validation: Scorer, scoring: ScoringConfig, rates: Sequence[float]) -> dict[float, float]:
    """Per rate the lowest threshold that at most this part of all healthy validation brain voxels lies above.

    Raises ``DataError`` if there are rates but no healthy volumes.
    """
    if rates and not validation.cases(HEALTHY):
        raise DataError(
            "evaluation.healthy_false_positive_rates: thresholds come from healthy validation volumes, and this cohort has "
            "none; add some to the validation split of data.healthy or set the rates to []"
        )
    brains = validation.histograms(HEALTHY, scoring)
    return {rate: operating_point.quantile_threshold(brains, rate) for rate in rates}


class _Bench:
    """Measures volume by volume under fixed settings; used by several threads at once."""

    def __init__(
        self, scorer: Scorer, scoring: ScoringConfig, evaluation: EvaluationConfig, at_rates: Mapping[float, float]
    ) -> None:
        self._scorer, self._scoring, self._at_rates = scorer, scoring, at_rates
        self._overlap = evaluation.lesion_overlap
        self._strata = metrics.strata(evaluation.lesion_size_limits_ml)

    def volume(self, case: Case, basic: Row) -> _Volume:
        """Everything about one volume; ``basic`` is its row of ``score.evaluate``."""
        truth = self._scorer.store.segmentation(case.index) > 0
        spacing = self._voxel_size_mm(case)
        voxel_ml = math.prod(spacing) / 1000
        scores = self._scorer.anomaly_map(case.index, self._scoring)
        whole = histogram(scores, case.lesion, case.ignored)
        brain = histogram(scores.ravel()[case.brain], truth.ravel()[case.brain])
        prediction = self._scorer.counted_segmentation(case, self._scoring, basic["threshold"])
        parts = components(truth)
        kept = self._scorer.kept(case, self._scoring) if case.lesion.size else None
        best = best_filtered_dice([[kept]]) if kept else None
        row = {
            **basic,
            "oracle_dice": best.dice if best else None,
            "oracle_threshold": best.threshold if best else None,
            "lesion_ml": case.lesion.size * voxel_ml,
            "predicted_ml": basic["predicted_voxels"] * voxel_ml,
            "false_positive_ml": confusion(prediction, truth).false_positive * voxel_ml,
            "lesion_fraction": brain.lesion_voxels / case.brain.size,
            "auprc_brain": operating_point.average_precision(brain),
            "auroc_brain": operating_point.area_under_roc(brain),
            **self._detection(prediction, parts, voxel_ml),
            "hd95": hd95_mm(prediction, truth, spacing),
            **self._fidelity(case, truth),
            **_with_unseen(case, basic, voxel_ml),
        }
        for rate, threshold in self._at_rates.items():
            row |= self._at_rate(case, rate, threshold, truth, parts, voxel_ml)
        return _Volume(row, whole, brain, kept)

    def _voxel_size_mm(self, case: Case) -> tuple[float, float, float]:
        """Along (S, H, W), which are the axes (Z, X, Y) of the working grid."""
        x, y, z = self._scorer.store.volumes[case.index].geometry.working_voxel_size_mm
        return z, x, y

    def _detection(self, prediction: NDArray[np.bool_], parts: Components, voxel_ml: float) -> Row:
        detection = detect(components(prediction), parts, self._overlap)
        found = metrics.overlapping(parts, prediction, self._overlap)
        row: Row = {
            "lesions": detection.lesions,
            "lesions_found": detection.found,
            "components": detection.components,
            "components_right": detection.right,
            "lesion_recall": detection.recall,
            "lesion_precision": detection.precision,
            "lesion_f1": detection.f1,
        }
        for stratum in self._strata:
            here = stratum.holds(parts.voxels * voxel_ml)
            row[f"lesions_{stratum.name}"] = int(here.sum())
            row[f"lesions_found_{stratum.name}"] = int((here & found).sum())
        return row

    def _fidelity(self, case: Case, truth: NDArray[np.bool_]) -> Row:
        """Healthy volumes are to be restored as they are, in others the lesion is to stand out: never both numbers."""
        row: Row = dict.fromkeys(("l1", "l2", "ssim", "psnr", "l1_lesion", "l1_tissue", "l1_ratio"))
        if not self._scorer.reconstructs:
            return row
        image, brain = self._scorer.store.image(case.index), case.counted(self._scorer.store.mask(case.index) > 0)
        restored = self._scorer.reconstruction(case.index, self._scoring)
        if case.dataset != HEALTHY:
            error = lesion_error(image, restored, brain, truth)
            return row | {"l1_lesion": error.lesion, "l1_tissue": error.tissue, "l1_ratio": error.ratio}
        found = fidelity(image, restored, brain)
        return row | ({"l1": found.l1, "l2": found.l2, "ssim": found.ssim, "psnr": found.psnr} if found else {})

    def _at_rate(
        self,
        case: Case,
        rate: float,
        threshold: float,
        truth: NDArray[np.bool_],
        parts: Components,
        voxel_ml: float,
    ) -> Row:
        prediction = self._scorer.counted_segmentation(case, self._scoring, threshold)
        counts = confusion(prediction, truth)
        in_brain = confusion(prediction.ravel()[case.brain], truth.ravel()[case.brain])
        found = int(metrics.overlapping(parts, prediction, self._overlap).sum())
        return {
            at_rate("threshold", rate): threshold,
            at_rate("dice", rate): counts.dice if case.lesion.size else None,
            at_rate("lesions_found", rate): found,
            at_rate("lesion_recall", rate): found / parts.voxels.size if parts.voxels.size else None,
            at_rate("false_positive_rate", rate): in_brain.false_positive_rate,
            at_rate("false_positive_ml", rate): counts.false_positive * voxel_ml,
        }

    def aggregate(self, volumes: Sequence[_Volume]) -> Aggregates:
        """Numbers of one data set."""
        rows = [volume.row for volume in volumes]
        averaged = [*_AVERAGED, *(at_rate(name, rate) for name in _AVERAGED_AT_RATES for rate in self._at_rates)]
        result: Aggregates = {"volumes": len(rows), "threshold": rows[0]["threshold"]}
        for name in averaged:
            result |= _spread(name, [row[name] for row in rows])
        result |= {name: sum(row[name] for row in rows) for name in _SUMMED}
        result |= _pooled_lesions(rows)
        for rate, threshold in self._at_rates.items():
            found = sum(row[at_rate("lesions_found", rate)] for row in rows)
            result[at_rate("threshold", rate)] = threshold
            result[at_rate("lesions_found", rate)] = found
            result[at_rate("lesion_recall_pooled", rate)] = _ratio(found, result["lesions"])
        for stratum in self._strata:
            there, met = (sum(row[f"{kind}_{stratum.name}"] for row in rows) for kind in ("lesions", "lesions_found"))
            result[f"lesions_{stratum.name}"], result[f"lesions_found_{stratum.name}"] = there, met
            result[f"lesion_recall_{stratum.name}"] = _ratio(met, there)
        return result | _curves(volumes)

    def on_healthy(self, volumes: Sequence[_Volume]) -> Aggregates:
        """Predicted volume in the healthy scans of this cohort at the operating point of one data set."""
        threshold = volumes[0].row["threshold"]

        def predicted_ml(case: Case) -> float:
            prediction = self._scorer.counted_segmentation(case, self._scoring, threshold)
            return int(np.count_nonzero(prediction)) * math.prod(self._voxel_size_mm(case)) / 1000

        return _spread("healthy_false_positive_ml", self._scorer.each(predicted_ml, self._scorer.cases(HEALTHY)))


def _with_unseen(case: Case, basic: Row, voxel_ml: float) -> Row:
    """What lies beyond the model's window, and the voxels' scores if lesions there are missed; None where it was not counted."""
    brain, lesion = case.brain_unseen_ml, case.lesion_unseen_ml
    row: Row = {"brain_unseen_ml": brain, "lesion_unseen_ml": lesion}
    row["brain_unseen"] = None if brain is None else brain / (brain + case.brain.size * voxel_ml)
    row |= {"dice_with_unseen": None, "recall_with_unseen": None}
    if lesion is not None and (case.lesion.size or lesion):
        found = (basic["recall"] or 0.0) * case.lesion.size
        lesions = case.lesion.size + lesion / voxel_ml
        row["dice_with_unseen"] = 2 * found / (lesions + basic["predicted_voxels"])
        row["recall_with_unseen"] = found / lesions
    return row


def _spread(name: str, values: Sequence[float | None]) -> Aggregates:
    defined = sum(value is not None for value in values)
    return {name: mean(values), f"{name}_std": standard_deviation(values), f"{name}_volumes": defined}


def _pooled_lesions(rows: Iterable[Row]) -> Aggregates:
    every = metrics.pooled(
        Detection(row["lesions"], row["lesions_found"], row["components"], row["components_right"]) for row in rows
    )
    return {
        "lesion_recall_pooled": every.recall,
        "lesion_precision_pooled": every.precision,
        "lesion_f1_pooled": every.f1,
    }


def _curves(volumes: Sequence[_Volume]) -> Aggregates:
    """Over all thresholds: of all voxels together, and the oracle."""
    whole = operating_point.pooled([volume.whole for volume in volumes])
    brain = operating_point.pooled([volume.brain for volume in volumes])
    in_order = sorted(volumes, key=lambda v: v.row["volume"])  # sums depend on it
    counted = [volume.kept for volume in in_order if volume.kept]
    best = best_filtered_dice([counted]) if counted else None
    return {
        "auprc_pooled": operating_point.average_precision(whole),
        "auroc_pooled": operating_point.area_under_roc(whole),
        "auprc_brain_pooled": operating_point.average_precision(brain),
        "auroc_brain_pooled": operating_point.area_under_roc(brain),
        "dataset_oracle_dice": best.dice if best else None,
        "dataset_oracle_threshold": best.threshold if best else None,
    }


def _ratio(part: float, whole: float | None) -> float | None:
    return part / whole if whole else None
