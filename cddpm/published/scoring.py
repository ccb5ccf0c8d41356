"""The published evaluation, number by number, under its own names: also where a name or a number is wrong.

For comparison with the published code only (``evaluation.reference_metrics``); every number that this project reports
stands in ``scoring.score`` and ``scoring.measures``, under its right name. What the published names mean, for one volume
each (``PerVol``):

================================  ====================================================================================
published name                    what it is
================================  ====================================================================================
TP, FP, TN, FN                    true negatives, false negatives, false positives, true positives: the rows of the
                                  confusion matrix were named in the wrong order
TPR, Recall                       TP / (TP + FN), of the true counts
FPR                               FP / (FP + TP), of the true counts: the false discovery rate, 1 - precision
Precision, Accuracy               right
Specificity                       FP / (FP + FN) of the true counts: 'TN' / ('TN' + 'FP') of the misnamed ones
DiceScore                         after the component filter, at BestThreshold
BestDice                          of the ten-step search on this very volume (oracle), before the component filter
BestThreshold                     validation: of that search, so each volume has its own (oracle); test: the given one
AUC, AUPRC                        over all voxels of the volume, those outside of the brain too
Haus                              Hausdorff distance in voxels, after the component filter
l1recoErrorAll                    mean |x - x0| over all voxels, background too, without erosion or median
l1recoErrorUnhealthy, ...Healthy  the same inside the segmentation (NaN if empty), and outside of it
l2recoError...                    the same of (x - x0)^2
l1reconstructionError...          always 0: nothing fills it
AnomalyScoreReco, ...Comb, ...    mean anomaly map inside the brain mask (not eroded); five names, one number
label                             as the split file has it
...PerSlice                       per index of the volume's first axis: sagittal slices, not axial ones
PrecisionPerSlice, RecallPer...   and DiceScorePerSlice: before the component filter, in slices with lesion only; 0 where
                                  nothing is predicted
AnomalyScoreRecoPerSlice          all slices; mean of the anomaly map in the brain mask, 0 without brain
AUCAnomalyRecoPerSlice, AUPRC...  per volume: slices with against slices without lesion, by that score
t_1p, t_5p, t_10p                 healthy validation: 99, 95 and 90 % quantile of the anomaly map over all voxels of all
                                  volumes; background counts, so about three times as much of the brain lies above
Mean, Std                         over volumes; population standard deviation
================================  ====================================================================================

The published code keeps the residual mode L1 whatever is configured, so does this module. Numbers that do not exist are
NaN here, as published. Letters: S slices, H, W their size; the published first axis is H.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cddpm.config import ScoringConfig
from cddpm.errors import DataError
from cddpm.scoring.metrics import Confusion, confusion
from cddpm.scoring.operating_point import Optimum, ten_step_search
from cddpm.scoring.postprocess import remove_small_components
from cddpm.scoring.residual import eroded, erosion_iterations
from cddpm.scoring.score import Scorer

Floats = NDArray[np.float32]
Truths = NDArray[np.bool_]
Dictionary = dict[str, Any]

SAGITTAL = 1
"""Axis of (S, H, W) that the published code takes for the slices."""
HEALTHY_QUANTILES = {"t_1p": 0.99, "t_5p": 0.95, "t_10p": 0.90}
_SUMMARISED = {
    "l1recoErrorAll": "l1recoErrorAll",
    "l2recoErrorAll": "l2recoErrorAll",
    "l1recoErrorHealthy": "l1recoErrorHealthy",
    "l1recoErrorUnhealthy": "l1recoErrorUnhealthy",
    "l2recoErrorHealthy": "l2recoErrorHealthy",
    "l2recoErrorUnhealthy": "l2recoErrorUnhealthy",
    "DicePerVol": "DiceScorePerVol",
} | {
    name: name
    for name in (
        *("AUPRCPerVol", "AUCPerVol", "BestDicePerVol", "BestThresholdPerVol", "TPPerVol", "FPPerVol", "TNPerVol"),
        *("FNPerVol", "TPRPerVol", "FPRPerVol", "HausPerVol", "PrecisionPerVol", "RecallPerVol", "PrecisionPerSlice"),
        *("RecallPerSlice", "AccuracyPerVol", "SpecificityPerVol"),
    )
}
"""Name of the mean and standard deviation -> name of the list; not every list is summarised."""
_SCORE_NAMES = ("Comb", "Combi", "Reco", "CombPrior", "CombiPrior")


@dataclass(frozen=True)
class ReferenceVolume:
    """What the published evaluation reads of one volume; all (S, H, W) on the working grid, images in [0, 1]."""

    image: NDArray[np.floating[Any]]
    reconstruction: NDArray[np.floating[Any]]
    """Of the whole volume, background too."""
    mask: NDArray[np.uint8]
    segmentation: NDArray[np.uint8]
    label: float = 1.0
    ignored: NDArray[np.int64] | None = None
    """Flat indices of voxels that are left out of everything that is counted; the published code knows none."""
    columns: int | None = None
    """Of the model's slice, where all of a larger plane is looked at; the published code does not."""

    @property
    def counted(self) -> Truths:
        """(S, H, W): false where ignored."""
        counted = np.ones(self.mask.shape, bool)
        if self.ignored is not None:
            counted.ravel()[self.ignored] = False
        return counted


def reference_volumes(scorer: Scorer, scoring: ScoringConfig, dataset: str) -> Iterator[ReferenceVolume]:
    """The volumes of a data set of ``scorer`` (or its ``healthy`` ones), one at a time, in their order.

    Reconstructions are the mean over the levels of ``scoring`` and all seeds. The label is that of the volume's record; 1
    where it has none. Raises ``DataError`` for an unknown data set.
    """
    store = scorer.store
    for case in scorer.cases(dataset):
        v, label = case.index, getattr(store.volumes[case.index], "label", None)
        whole = scorer.whole_reconstruction(v, scoring)
        named = 1.0 if label is None else float(label)
        arrays = store.image(v), whole, store.mask(v), store.segmentation(v)
        yield ReferenceVolume(*arrays, named, store.ignored(v), case.columns)


def reference_threshold(volumes: Iterable[ReferenceVolume], scoring: ScoringConfig) -> float:
    """The published "automatic" threshold: ten-step search over the voxels of all validation volumes taken together.

    Raises ``DataError`` without volumes.
    """
    pairs = [(reference_anomaly_map(v, scoring)[v.counted], v.segmentation[v.counted] > 0) for v in volumes]
    _require(pairs)
    scores, truths = (np.concatenate(part) for part in zip(*pairs, strict=True))
    return search_array(scores, truths).threshold


def reference_metrics(
    volumes: Iterable[ReferenceVolume], scoring: ScoringConfig, threshold: float | None = None
) -> Dictionary:
    """The published dictionary of an unhealthy data set: lists over volumes (or slices), means, standard deviations.

    ``threshold`` none: validation, each volume at its own best threshold; a number: test at this one
    (``reference_threshold`` of validation). ``scoring`` gives erosion, median kernel and smallest component; its residual
    and operating point are not read, as published. Raises ``DataError`` without volumes.
    """
    table: Dictionary = {}
    for volume in volumes:
        scores = reference_anomaly_map(volume, scoring)
        for part in (_errors(volume), _detection(volume, scores, scoring, threshold), _slices(volume, scores)):
            _append(table, part)
        _append(table, _volume_scores(volume, scores))
    _require(table)
    return table | _summary(table)


def healthy_reference_metrics(volumes: Iterable[ReferenceVolume], scoring: ScoringConfig) -> Dictionary:
    """The published dictionary of a healthy validation set: errors, scores, ``t_1p``, ``t_5p``, ``t_10p``; the rest NaN.

    Raises ``DataError`` without volumes.
    """
    table: Dictionary = {}
    maps: list[Floats] = []
    for volume in volumes:
        scores = reference_anomaly_map(volume, scoring)
        maps.append(scores[volume.counted])
        _append(table, _errors(volume))
        _append(table, _volume_scores(volume, scores))
    _require(maps)
    everything = np.concatenate(maps)
    limits = {name: float(np.quantile(everything, share)) for name, share in HEALTHY_QUANTILES.items()}
    return table | _summary(table) | limits


def reference_anomaly_map(volume: ReferenceVolume, scoring: ScoringConfig) -> Floats:
    """|x - x0| in the eroded brain mask, median filtered; (S, H, W) float32 (``Scorer`` holds float16)."""
    columns = volume.columns or volume.mask.shape[2]
    residual = _residual(volume) * eroded(volume.mask, erosion_iterations((1, 1, columns), scoring.erosion_divisor))
    if scoring.median_kernel == 1:
        return residual
    return np.asarray(ndimage.median_filter(residual, scoring.median_kernel), np.float32)


def search_array(scores: NDArray[np.floating[Any]], truth: Truths) -> Optimum:
    """``operating_point.ten_step_search`` on an array of scores of any shape and type, without a histogram."""
    every, lesion = np.sort(scores.ravel()), np.sort(scores[truth].ravel())

    def dice_above(threshold: float) -> float:
        found, hit = (float(v.size - np.searchsorted(v, np.float64(threshold), "right")) for v in (every, lesion))
        return 2 * hit / (found + lesion.size) if found + lesion.size else math.nan

    return ten_step_search(dice_above, float(every[-1]))


def _require(found: list[Any] | Dictionary) -> None:
    if not found:
        raise DataError("reference metrics of no volume; name at least one data set or healthy volume")


def _append(table: Dictionary, part: Dictionary) -> None:
    for name, value in part.items():
        table.setdefault(name, []).extend(value if isinstance(value, list) else [value])


def _residual(volume: ReferenceVolume) -> Floats:
    return np.abs(volume.image.astype(np.float32) - volume.reconstruction.astype(np.float32))


def _errors(volume: ReferenceVolume) -> Dictionary:
    residual, lesion = _residual(volume).astype(np.float64)[volume.counted], volume.segmentation[volume.counted] > 0
    result = {}
    for name, error in (("l1", residual), ("l2", residual**2)):
        result[f"{name}recoErrorAll"] = float(error.mean())
        result[f"{name}recoErrorUnhealthy"] = float(error[lesion].mean()) if lesion.any() else math.nan
        result[f"{name}recoErrorHealthy"] = float(error[~lesion].mean()) if not lesion.all() else math.nan
    return result


def _detection(volume: ReferenceVolume, scores: Floats, scoring: ScoringConfig, threshold: float | None) -> Dictionary:
    truth, counted = volume.segmentation > 0, volume.counted
    best = search_array(scores[counted], truth[counted])
    used = best.threshold if threshold is None else threshold
    above = scores > np.float64(used)
    prediction = remove_small_components(above, scoring.minimum_component_voxels) & counted
    ranked = _ranking(truth[counted], scores[counted])
    return (
        _misnamed(confusion(prediction[counted], truth[counted]))
        | {
            "HausPerVol": _hausdorff(prediction, truth),
            "lesionSizePerVol": float(truth.sum()),
            "BestDicePerVol": best.dice,
            "BestThresholdPerVol": used,
            "AUCPerVol": ranked[0],
            "AUPRCPerVol": ranked[1],
        }
        | _detection_per_slice(above & counted, truth)
    )


def _misnamed(counts: Confusion) -> Dictionary:
    """Counts and ratios of a volume under their published names."""
    wrong, missed = counts.false_positive, counts.false_negative
    right = counts.true_positive + counts.true_negative
    return {
        "TPPerVol": float(counts.true_negative),
        "FPPerVol": float(missed),
        "TNPerVol": float(wrong),
        "FNPerVol": float(counts.true_positive),
        "TPRPerVol": _number(counts.recall),
        "FPRPerVol": _number(counts.false_discovery_rate),
        "PrecisionPerVol": counts.precision or 0.0,
        "RecallPerVol": counts.recall or 0.0,
        "DiceScorePerVol": _number(counts.dice),
        "SpecificityPerVol": wrong / (wrong + missed) if wrong + missed else math.nan,
        "AccuracyPerVol": right / (right + wrong + missed),
    }


def _detection_per_slice(above: Truths, truth: Truths) -> Dictionary:
    """Lists over the sagittal slices with lesion, before the component filter."""
    result: Dictionary = {}
    for found, lesion in zip(_sagittal(above), _sagittal(truth), strict=True):
        if lesion.any():
            counts = confusion(found, lesion)
            numbers = {"PrecisionPerSlice": counts.precision, "RecallPerSlice": counts.recall}
            numbers |= {"lesionSizePerSlice": float(lesion.sum()), "DiceScorePerSlice": counts.dice}
            _append(result, {name: value or 0.0 for name, value in numbers.items()})
    return result


def _slices(volume: ReferenceVolume, scores: Floats) -> Dictionary:
    """Anomaly score and label of every sagittal slice, and how well the one tells the other."""
    brain = _sagittal((volume.mask > 0) & volume.counted)
    means = [float(s[b].mean()) if b.any() else 0.0 for s, b in zip(_sagittal(scores), brain, strict=True)]
    labels = [float(lesion.any()) for lesion in _sagittal(volume.segmentation > 0)]
    area, precision = _ranking(np.array(labels) > 0, np.array(means))
    return {
        "AUCAnomalyRecoPerSlice": area,
        "AUPRCAnomalyRecoPerSlice": precision,
        "AnomalyScoreRecoPerSlice": means,
        "labelPerSlice": labels,
    }


def _volume_scores(volume: ReferenceVolume, scores: Floats) -> Dictionary:
    score = float(scores[(volume.mask > 0) & volume.counted].mean(dtype=np.float64))
    return {"labelPerVol": float(volume.label)} | {f"AnomalyScore{name}PerVol": score for name in _SCORE_NAMES}


def _summary(table: Dictionary) -> Dictionary:
    """Mean and standard deviation of the lists that the published code summarises; NaN for a list that is not there."""
    result = {f"{power}reconstructionError{kind}": 0.0 for power in ("l1", "l2") for kind in ("Mean", "Std")}
    for name, source in _SUMMARISED.items():
        values = np.array(table.get(source, []), np.float64)
        values = values[~np.isnan(values)]
        result[f"{name}Mean"] = float(values.mean()) if values.size else math.nan
        result[f"{name}Std"] = float(values.std()) if values.size else math.nan
    return result


def _sagittal(array: NDArray[Any]) -> NDArray[Any]:
    return np.moveaxis(array, SAGITTAL, 0)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _ranking(truth: Truths, scores: NDArray[np.floating[Any]]) -> tuple[float, float]:
    """Area under the ROC curve and average precision; NaN where one of the two kinds is missing."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    if truth.all() or not truth.any():
        return math.nan, math.nan
    return float(roc_auc_score(truth, scores)), float(average_precision_score(truth, scores))


def _hausdorff(prediction: Truths, truth: Truths) -> float:
    """Largest distance in voxels from one surface to the other; NaN where one of the two is empty."""
    from cddpm.scoring.metrics import hausdorff_mm

    return _number(hausdorff_mm(prediction, truth, (1.0, 1.0, 1.0)))
