"""What the component filter leaves at every threshold, in one pass over a volume.

As the threshold falls, voxels join, components grow and merge, and none ever splits or shrinks: a union-find over the
voxels in descending order of their scores passes through the components of every threshold (the max-tree of the volume;
Najman and Couprie 2006, "Building the component tree in quasi-linear time"). A component that is large enough stays so, and
adds its voxels to two counts, which are all that a Dice needs. Equals ``postprocess.remove_small_components`` at each
threshold.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cddpm.compiled import njit
from cddpm.scoring.operating_point import LARGEST_FINITE, Optimum, threshold_value
from cddpm.scoring.postprocess import SMALLEST_SHELL, ComponentRule, bounding_box


@dataclass(frozen=True)
class FilteredCounts:
    """Voxels that the filter keeps: entry b is for threshold ``threshold_value(b)``; int64 arrays of equal length."""

    predicted: NDArray[np.int64]
    true_positive: NDArray[np.int64]
    lesion_voxels: int
    """Of the truth."""

    def dice_curve(self, length: int) -> NDArray[np.float64]:
        """Dice at every threshold, (length,), zeros beyond the largest score. Raises ``ValueError`` without lesion."""
        if self.lesion_voxels == 0:
            raise ValueError("a volume without lesion voxels has no Dice curve; leave such volumes out")
        curve = np.zeros(length)
        curve[: self.predicted.size] = 2.0 * self.true_positive / (self.predicted + self.lesion_voxels)
        return curve


def filtered_counts(
    scores: NDArray[np.float16],
    lesion: NDArray[np.int64],
    minimum_voxels: int,
    rule: ComponentRule,
    ignored: NDArray[np.int64] | None = None,
) -> FilteredCounts:
    """Count what is left of ``scores > threshold`` without components below ``minimum_voxels``, for every threshold >= 0.

    ``scores`` (S, H, W) finite and >= 0; ``lesion`` flat indices of lesion voxels; those at ``ignored`` are not counted, but
    belong to components, as in a prediction. Raises ``ValueError`` for other scores.
    """
    if ignored is not None and ignored.size:
        whole = filtered_counts(scores, lesion, minimum_voxels, rule)
        beside = filtered_counts(scores, ignored, minimum_voxels, rule)
        return FilteredCounts(whole.predicted - beside.true_positive, whole.true_positive, whole.lesion_voxels)
    bits = np.ascontiguousarray(scores).view(np.uint16)
    highest = int(bits.max())
    if highest > LARGEST_FINITE:
        raise ValueError("scores: a negative, infinite or NaN number; anomaly scores are finite and >= 0")
    predicted, true_positive = np.zeros((2, highest + 1), np.int64)
    box = bounding_box(bits > 0)
    if box is not None:
        truth = np.zeros(bits.shape, bool)
        truth.ravel()[lesion] = True
        ringed = np.pad(bits[box], 1)  # a ring of zeros: every voxel has all its neighbours
        steps = _steps(rule.connectivity, ringed.shape)
        order, ends = _descending(ringed.ravel())
        hollow = rule.size == "filled" and minimum_voxels > SMALLEST_SHELL
        inside = np.pad(truth[box], 1).ravel()
        _flood(ringed.shape, order, ends, inside, steps, minimum_voxels, hollow, predicted, true_positive)
    return FilteredCounts(predicted, true_positive, int(lesion.size))


def thresholds_by_filtered_dice(groups: Mapping[str, Sequence[FilteredCounts]]) -> dict[str, float]:
    """Threshold of the best mean Dice per data set, and under ``all`` the one threshold that is best for all together."""
    chosen = {dataset: best_filtered_dice([counts]).threshold for dataset, counts in groups.items()}
    return chosen | {"all": best_filtered_dice(list(groups.values())).threshold}


def best_filtered_dice(groups: Sequence[Sequence[FilteredCounts]]) -> Optimum:
    """Exact optimum over all thresholds of the mean over groups of the mean Dice of their volumes after the filter.

    As ``operating_point.best_dice``, which knows no filter: volumes without lesion are left out, and of equal thresholds the
    lowest is taken. Raises ``ValueError`` if a group has no volume with a lesion.
    """
    length = max(counts.predicted.size for group in groups for counts in group)
    curve = np.zeros(length)
    for group in groups:
        with_lesion = [counts for counts in group if counts.lesion_voxels]
        if not with_lesion:
            raise ValueError("no volume with lesion voxels: there is no Dice to maximise")
        total = np.zeros(length)
        for counts in with_lesion:
            total += counts.dice_curve(length)
        curve += total / len(with_lesion)
    curve /= len(groups)
    best = int(np.argmax(curve))
    return Optimum(float(curve[best]), threshold_value(best))


@lru_cache
def _steps(connectivity: int, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Differences of flat indices between a voxel and its neighbours; half of them, then their opposites."""
    offsets = np.argwhere(np.ones((3, 3, 3))) - 1
    near = (np.abs(offsets).sum(axis=1) <= {6: 1, 18: 2, 26: 3}[connectivity]) & offsets.any(axis=1)
    return np.ascontiguousarray(offsets[near] @ np.array((shape[1] * shape[2], shape[2], 1)))


def _descending(bits: NDArray[np.uint16]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Flat indices of the voxels above 0 by falling score, and per score b the number of voxels with one of at least b."""
    counts = np.bincount(bits)
    ends = np.cumsum(counts[::-1])[::-1]
    order = np.argsort(bits, kind="stable")[::-1][: int(ends[1])].astype(np.int32)
    return order, ends


@njit(cache=True, nogil=True)
def _root(parents: Any, v: int) -> int:
    while parents[v] != v:
        parents[v] = parents[parents[v]]
        v = parents[v]
    return v


@njit(cache=True, nogil=True)
def _flood(  # noqa: PLR0913 - arrays that a compiled loop shares
    shape: Any,
    order: Any,
    ends: Any,
    truth: Any,
    steps: Any,
    minimum: int,
    hollow: bool,
    predicted: Any,
    true_positive: Any,
) -> None:
    """Fill ``predicted`` and ``true_positive``. Sizes and the rest are told of the root of a component.

    ``parents`` is -1 below the threshold, ``following`` runs round the voxels of a component.
    """
    size = shape[0] * shape[1] * shape[2]
    parents = np.full(size, -1, np.int32)
    voxels = np.ones(size, np.int32)
    lesions = truth.astype(np.int32)
    kept = np.full(size, minimum <= 1)
    following = np.arange(size if hollow else 0).astype(np.int32)
    looked_at = np.full(size if hollow else 0, -1, np.int32)
    found = np.zeros(2, np.int64)
    begin = 0
    for b in range(predicted.size - 2, -1, -1):  # the threshold falls to b: scores of b + 1 join
        for i in range(begin, ends[b + 1]):
            root = order[i]
            parents[root] = root
            if kept[root]:
                found[0] += 1
                found[1] += lesions[root]
            for step in steps:
                n = order[i] + step
                if parents[n] >= 0:
                    other = _root(parents, n)
                    if other != root:
                        root = _join(root, other, parents, voxels, lesions, kept, following, found, minimum)
        for i in range(begin, ends[b + 1] if hollow else begin):
            root = _root(parents, order[i])
            if looked_at[root] == b or kept[root] or voxels[root] < SMALLEST_SHELL:
                continue
            looked_at[root] = b
            if _filled_size(root, voxels[root], following, shape, minimum) >= minimum:
                _keep(root, voxels, lesions, kept, found)
        begin = ends[b + 1]
        predicted[b] = found[0]
        true_positive[b] = found[1]


@njit(cache=True, nogil=True)
def _keep(root: int, voxels: Any, lesions: Any, kept: Any, found: Any) -> None:
    kept[root] = True
    found[0] += voxels[root]
    found[1] += lesions[root]


@njit(cache=True, nogil=True)
def _join(  # noqa: PLR0913 - arrays that a compiled loop shares
    one: int,
    other: int,
    parents: Any,
    voxels: Any,
    lesions: Any,
    kept: Any,
    following: Any,
    found: Any,
    minimum: int,
) -> int:
    """Merge two components; the larger one's root stays."""
    root, gone = (one, other) if voxels[one] >= voxels[other] else (other, one)
    if kept[root] != kept[gone]:
        _keep(gone if kept[root] else root, voxels, lesions, kept, found)
    parents[gone] = root
    voxels[root] += voxels[gone]
    lesions[root] += lesions[gone]
    if following.size:
        following[root], following[gone] = following[gone], following[root]
    if not kept[root] and voxels[root] >= minimum:
        _keep(root, voxels, lesions, kept, found)
    return root


@njit(cache=True, nogil=True)
def _filled_size(root: int, voxels: int, following: Any, shape: Any, minimum: int) -> int:
    """Voxels of a component and of the holes in it: those that no path of touching voxels leads to from outside.

    The search is left out (and the voxels alone are counted) if too few voxels lie between two of a row.
    """
    plane = shape[1] * shape[2]
    low = np.array(shape)
    high = np.zeros(3, np.int64)
    v = root
    for _ in range(voxels):
        place = (v // plane, v // shape[2] % shape[1], v % shape[2])
        for axis in range(3):
            low[axis] = min(low[axis], place[axis])
            high[axis] = max(high[axis], place[axis])
        v = following[v]
    room = np.zeros((high[0] - low[0] + 3, high[1] - low[1] + 3, high[2] - low[2] + 3), np.uint8)
    for _ in range(voxels):
        room[v // plane - low[0] + 1, v // shape[2] % shape[1] - low[1] + 1, v % shape[2] - low[2] + 1] = 1
        v = following[v]
    if voxels + _between(room) < minimum:
        return voxels
    return room.size - _outside(room)


@njit(cache=True, nogil=True)
def _between(room: Any) -> int:
    """Empty voxels between the first and the last occupied one of each row: no hole lies anywhere else."""
    total = 0
    for s in range(room.shape[0]):
        for h in range(room.shape[1]):
            first = -1
            last = -1
            occupied = 0
            for w in range(room.shape[2]):
                if room[s, h, w]:
                    occupied += 1
                    last = w
                    if first < 0:
                        first = w
            if occupied:
                total += last - first + 1 - occupied
    return total


@njit(cache=True, nogil=True)
def _outside(room: Any) -> int:
    """Empty voxels (0) that touch the corner of the room through others; they become 2."""
    stack = np.empty((room.size, 3), np.int32)
    stack[0] = 0
    room[0, 0, 0] = 2
    waiting = 1
    reached = 1
    while waiting:
        waiting -= 1
        s, h, w = stack[waiting]
        for a in range(max(s - 1, 0), min(s + 2, room.shape[0])):
            for b in range(max(h - 1, 0), min(h + 2, room.shape[1])):
                for c in range(max(w - 1, 0), min(w + 2, room.shape[2])):
                    if room[a, b, c] == 0:
                        room[a, b, c] = 2
                        stack[waiting] = (a, b, c)
                        waiting += 1
                        reached += 1
    return reached
