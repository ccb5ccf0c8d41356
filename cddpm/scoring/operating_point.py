"""Exact curves and thresholds from histograms of anomaly scores.

Anomaly maps hold non-negative float16 numbers, whose bit patterns are integers of the same order. So one histogram over
bit patterns per volume, lesion and normal voxels apart, has one bin per possible threshold, and every curve over *all*
thresholds is a cumulative sum. A voxel is positive if its score is strictly above the threshold; thresholds are >= 0.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cddpm.compiled import njit

LARGEST_FINITE = 0x7BFF
"""Bit pattern of 65504, the largest finite float16."""
SEED_SEARCH_STEPS = 10


def threshold_bits(threshold: float) -> np.uint16:
    """Bit pattern b of the largest float16 <= ``threshold``: score > threshold is the same as bits(score) > b.

    Raises ``ValueError`` below 0 or for NaN.
    """
    if not threshold >= 0:
        raise ValueError(f"threshold: {threshold}; a number >= 0 is needed")
    nearest = np.float16(min(threshold, 65504.0))
    bits = nearest.view(np.uint16)
    return np.uint16(bits - 1) if float(nearest) > threshold else bits


def threshold_value(bits: int) -> float:
    """The float16 number with this bit pattern."""
    return float(np.uint16(bits).view(np.float16))


@dataclass(frozen=True)
class Histogram:
    """Voxels per score (bit pattern): ``lesion`` and ``normal`` are (N,) int64 of equal length."""

    lesion: NDArray[np.int64]
    normal: NDArray[np.int64]

    @property
    def lesion_voxels(self) -> int:
        """How many lesion voxels were counted."""
        return int(self.lesion.sum())

    @property
    def normal_voxels(self) -> int:
        """How many other voxels were counted."""
        return int(self.normal.sum())


def histogram(
    scores: NDArray[np.float16], lesion: NDArray[np.bool_ | np.int64], ignored: NDArray[np.int64] | None = None
) -> Histogram:
    """Count the scores (any shape, finite, >= 0). ``lesion``: a mask of that shape, or flat indices of lesion voxels.

    Voxels at the flat indices ``ignored``, none of them a lesion, are as if they were not there.

    Raises ``ValueError`` if a score is negative, infinite or NaN.
    """
    bits = np.ascontiguousarray(scores).view(np.uint16).ravel()
    largest = int(bits.max(initial=0))
    if largest > LARGEST_FINITE:
        raise ValueError("scores: a negative, infinite or NaN number; anomaly scores are finite and >= 0")
    every: NDArray[np.int64] = _counts(bits, largest + 1)
    if ignored is not None and ignored.size:
        every = every - np.bincount(bits[ignored], minlength=every.size)
        every = every[: max(1, int(np.flatnonzero(every).max(initial=0)) + 1)]
    picked = lesion.ravel() if lesion.dtype == np.bool_ else lesion
    abnormal = np.bincount(bits[picked], minlength=every.size)
    return Histogram(abnormal, every - abnormal)


@njit(cache=True, nogil=True)
def _counts(bits: Any, length: int) -> Any:
    """How often each number below ``length`` stands in ``bits``; most are 0, and adding to one place again and again is slow."""
    counts = np.zeros(length, np.int64)
    others = 0
    for b in bits:
        if b != 0:
            counts[b] += 1
            others += 1
    counts[0] = bits.size - others
    return counts


def pooled(histograms: Sequence[Histogram]) -> Histogram:
    """All voxels of several volumes as one."""
    length = max(h.lesion.size for h in histograms)
    lesion, normal = np.zeros(length, np.int64), np.zeros(length, np.int64)
    for h in histograms:
        lesion[: h.lesion.size] += h.lesion
        normal[: h.normal.size] += h.normal
    return Histogram(lesion, normal)


def dice_curve(h: Histogram, length: int) -> NDArray[np.float64]:
    """Dice at every threshold: entry b is for ``threshold_value(b)``; (length,), zeros beyond the largest score.

    2 TP / (2 TP + FP + FN). Raises ``ValueError`` for a volume without lesion, where no threshold has a Dice.
    """
    total = h.lesion_voxels
    if total == 0:
        raise ValueError("histogram without lesion voxels has no Dice curve; leave such volumes out")
    true_positive = total - np.cumsum(h.lesion)
    positive = true_positive + h.normal_voxels - np.cumsum(h.normal)
    curve = np.zeros(length)
    curve[: h.lesion.size] = 2.0 * true_positive / (positive + total)
    return curve


def mean_dice_curve(histograms: Sequence[Histogram], length: int) -> NDArray[np.float64]:
    """Mean over volumes of their Dice at every common threshold; (length,). Volumes without lesion are left out.

    Raises ``ValueError`` if no volume has a lesion.
    """
    with_lesion = [h for h in histograms if h.lesion_voxels]
    if not with_lesion:
        raise ValueError("no volume with lesion voxels: there is no Dice to maximise")
    total = np.zeros(length)
    for h in with_lesion:
        total += dice_curve(h, length)
    return total / len(with_lesion)


@dataclass(frozen=True)
class Optimum:
    """The best Dice over all thresholds, and the lowest threshold that has it."""

    dice: float
    threshold: float


def best_dice(groups: Sequence[Sequence[Histogram]]) -> Optimum:
    """Exact optimum of: Dice of each volume, mean over the volumes of a group, mean over groups, at one threshold.

    One group of one volume gives its own best Dice; one group of a data set the reported mean; several groups weigh data
    sets equally whatever their sizes. Raises ``ValueError`` if a group has no volume with a lesion.
    """
    length = max(h.lesion.size for group in groups for h in group)
    curve = sum((mean_dice_curve(group, length) for group in groups), np.zeros(length)) / len(groups)
    best = int(np.argmax(curve))
    return Optimum(float(curve[best]), threshold_value(best))


def ten_step_search(dice_above: Callable[[float], float], top: float) -> Optimum:
    """The published search for a threshold: ten halvings of [0, ``top``], each towards the better of its quarter points.

    ``dice_above(t)`` is the Dice of "score > t", NaN where both sides are empty. Of equal quarter points the lower wins;
    of equal values the one found last is kept. ``top`` 0 (nothing scores) searches [0, 1]. Dice is no unimodal function of
    the threshold, so this may miss the optimum; it never exceeds ``best_dice``.
    """
    low, high, best = 0.0, top or 1.0, Optimum(0.0, 0.0)
    for _ in range(SEED_SEARCH_STEPS):
        width = high - low
        points = [low + width * share for share in (0.25, 0.75)]
        below, above = (dice_above(point) for point in points)
        upper = below < above  # false for NaN
        found = Optimum(above, points[1]) if upper else Optimum(below, points[0])
        best = found if found.dice >= best.dice else best
        low, high = (low + width / 2, high) if upper else (low, low + width / 2)
    return best


def seed_search(h: Histogram) -> Optimum:
    """``ten_step_search`` over the voxels of a histogram, up to its largest score; see there."""
    lesion_above = h.lesion_voxels - np.cumsum(h.lesion)
    above = lesion_above + h.normal_voxels - np.cumsum(h.normal)

    def dice_above(threshold: float) -> float:
        bits = min(int(threshold_bits(threshold)), above.size - 1)  # beyond the largest score nothing is left
        whole = int(above[bits]) + h.lesion_voxels
        return 2.0 * int(lesion_above[bits]) / whole if whole else math.nan

    return ten_step_search(dice_above, threshold_value(above.size - 1))


def average_precision(h: Histogram) -> float | None:
    """Area under the precision-recall curve as a step function, sum of (R_n - R_{n-1}) P_n; none without lesion voxels."""
    total = h.lesion_voxels
    if total == 0:
        return None
    lesion = h.lesion[::-1]
    true_positive = np.cumsum(lesion)
    positive = true_positive + np.cumsum(h.normal[::-1])
    hit = lesion > 0
    return float(np.sum(lesion[hit] * true_positive[hit] / positive[hit]) / total)


def area_under_roc(h: Histogram) -> float | None:
    """Probability that a lesion voxel scores above a normal one, ties half; none if one of the two kinds is missing."""
    lesions, normals = h.lesion_voxels, h.normal_voxels
    if lesions == 0 or normals == 0:
        return None
    below = np.cumsum(h.normal) - h.normal
    wins = np.sum(h.lesion * (below + 0.5 * h.normal))
    return float(wins / (float(lesions) * float(normals)))


def quantile_threshold(histograms: Sequence[Histogram], rate: float) -> float:
    """Lowest threshold that at most the fraction ``rate`` of all voxels (of healthy brains, say) lies above."""
    h = pooled(histograms)
    every = h.lesion + h.normal
    above = every.sum() - np.cumsum(every)
    return threshold_value(int(np.argmax(above <= rate * every.sum())))


def voxels_above(h: Histogram, threshold: float) -> int:
    """Voxels of both kinds whose score is strictly above ``threshold``."""
    beyond = int(threshold_bits(threshold)) + 1
    return int(h.lesion[beyond:].sum() + h.normal[beyond:].sum())


def dice_at(h: Histogram, threshold: float) -> float | None:
    """Dice of the voxels whose score is strictly above ``threshold``; none if there is neither one nor a lesion."""
    beyond = int(threshold_bits(threshold)) + 1
    hit = int(h.lesion[beyond:].sum())
    whole = hit + int(h.normal[beyond:].sum()) + h.lesion_voxels
    return 2 * hit / whole if whole else None


def without(whole: Histogram, part: Histogram) -> Histogram:
    """The voxels of ``whole`` that are not of ``part``, which is pooled in it."""
    lesion, normal = whole.lesion.copy(), whole.normal.copy()
    lesion[: part.lesion.size] -= part.lesion
    normal[: part.normal.size] -= part.normal
    return Histogram(lesion, normal)


def thresholds_by_seed_search(groups: Mapping[str, Sequence[Histogram]]) -> dict[str, float]:
    """Threshold of ``seed_search`` over the pooled voxels of each data set, and under ``all`` over those of all of them."""
    by_dataset = {dataset: pooled(histograms) for dataset, histograms in groups.items()}
    everything = by_dataset | {"all": pooled(list(by_dataset.values()))}
    return {name: seed_search(h).threshold for name, h in everything.items()}


def thresholds_by_dice(groups: Mapping[str, Sequence[Histogram]]) -> dict[str, float]:
    """Threshold of the best mean Dice per data set, and under ``all`` the one threshold that is best for all together."""
    chosen = {dataset: best_dice([histograms]).threshold for dataset, histograms in groups.items()}
    return chosen | {"all": best_dice(list(groups.values())).threshold}
