"""From a residual map to an anomaly map by a fast 3-D median, and from an anomaly map to a segmentation.

The median filter merges sorted lists of float16. A 5x5x5 median looks at 125 neighbours of each voxel. Neighbouring windows
share most of them, so the work is done in steps whose results are shared: k voxels along S are sorted once, k such columns
along H are merged into a sorted plane of k*k, planes along W are merged in pairs, and of the last merge only the ranks that
can hold the median are computed. Every step is a fixed list of compare-exchanges (Batcher's odd-even merge: K. E. Batcher,
"Sorting networks and their applications", AFIPS 1968; D. E. Knuth, TAOCP 3, 5.3.4), applied to whole rows along W at once,
which the compiler turns into vector minima and maxima of 16-bit integers.

Letters: S, H, W slices, rows and columns of the volume; k kernel size, r = k // 2 its radius, n = k * k.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cddpm.compiled import njit
from cddpm.config import ScoringConfig
from cddpm.scoring.operating_point import threshold_bits

KERNELS = (1, 3, 5, 7)
_SIGN = np.uint16(0x8000)
_LANES = 644
"""Voxels handled at once: long enough to hide loop overhead, short enough for the lists to stay in the cache."""
_GAP = 24
"""Voxels between two pieces of work; to skip fewer costs more than to compute them."""

Comparator = tuple[int, int]


def median_filter(volume: NDArray[np.float16], kernel: int) -> NDArray[np.float16]:
    """Median over a ``kernel``-cube around each voxel, border mirrored as in ``scipy.ndimage`` (mode ``reflect``).

    ``volume`` is (S, H, W) float16 without NaN; the result has its shape and equals SciPy's bit for bit (-0 counts as 0).
    Only the surroundings of non-zero voxels are computed. Raises ``ValueError`` for another type, shape or kernel.
    """
    if volume.dtype != np.float16 or volume.ndim != 3:
        raise ValueError(f"volume: {volume.ndim}-D {volume.dtype}; a 3-D float16 array is needed")
    if kernel not in KERNELS:
        raise ValueError(f"kernel: {kernel}; allowed are {', '.join(map(str, KERNELS))}")
    bits = np.ascontiguousarray(volume).view(np.uint16)
    bits = np.where(bits == _SIGN, np.uint16(0), bits)  # -0 becomes 0
    if kernel == 1:
        return bits.view(np.float16)
    medians = np.zeros(volume.shape, np.uint16)
    box = _occupied(bits, kernel // 2)
    if box is not None:
        medians[box] = _filter_box(bits, kernel, box)
    return medians.view(np.float16)


def _occupied(bits: NDArray[np.uint16], margin: int) -> tuple[slice, ...] | None:
    """Bounding box of the non-zero voxels, widened by ``margin``: beyond it every window holds zeros only."""
    box = []
    for axis, size in enumerate(bits.shape):
        others = tuple(a for a in range(3) if a != axis)
        found = np.flatnonzero(bits.max(axis=others))
        if not found.size:
            return None
        box.append(slice(max(0, int(found[0]) - margin), min(size, int(found[-1]) + 1 + margin)))
    return tuple(box)


def _filter_box(bits: NDArray[np.uint16], kernel: int, box: tuple[slice, ...]) -> NDArray[np.uint16]:
    r = kernel // 2
    inner = tuple(slice(max(0, b.start - r), b.stop + r) for b in box)
    beyond = [(max(0, r - b.start), max(0, b.stop + r - size)) for b, size in zip(box, bits.shape, strict=True)]
    window = np.pad(bits[inner], beyond, mode="symmetric")
    if window.max() < _SIGN:
        return _filter_bits(window, kernel)
    return _from_ordered(_filter_bits(_to_ordered(window), kernel))


def _filter_bits(padded: NDArray[np.uint16], kernel: int) -> NDArray[np.uint16]:
    depth, height, width = padded.shape
    margin = kernel - 1
    medians = _filter(padded.reshape(depth, -1), kernel, width, *_networks(kernel).arrays())
    return medians.reshape(depth - margin, height, width)[:, : height - margin, : width - margin]


def _to_ordered(bits: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Float16 bit patterns as integers of the same order: negative numbers reversed, below the others."""
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def _from_ordered(ordered: NDArray[np.uint16]) -> NDArray[np.uint16]:
    return np.where(ordered & _SIGN, ordered & ~_SIGN, ~ordered)


@dataclass(frozen=True)
class _Networks:
    """Compare-exchanges (C, 2) of each step, and on which wires its sorted output then lies."""

    column: NDArray[np.int64]
    plane: NDArray[np.int64]
    plane_wires: NDArray[np.int64]
    pair: NDArray[np.int64]
    pair_wires: NDArray[np.int64]
    last: NDArray[np.int64]
    last_wires: NDArray[np.int64]
    """The n + 1 ranks of the last merge among which the median lies, ascending."""

    def arrays(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.__dataclass_fields__)


@lru_cache
def _networks(k: int) -> _Networks:
    n, rank = k * k, (k**3 + 1) // 2
    column, column_wires = _merge_all([[i] for i in range(k)])
    plane, plane_wires = _merge_all([[j * k + i for i in column_wires] for j in range(k)])
    pair, pair_wires = _merge_all([list(range(n)), list(range(n, 2 * n))])
    last, last_wires = _merge_all([list(range(2 * n * j, 2 * n * (j + 1))) for j in range(k // 2)])
    wanted = last_wires[rank - n - 1 : rank]
    lists = (column, plane, plane_wires, pair, pair_wires, _pruned(last, wanted), wanted)
    arrays = [np.array(x, np.int64) for x in lists]
    arrays[5] = arrays[5].reshape(-1, 2)  # kernel 3 needs no last merge: an empty list of pairs
    return _Networks(*arrays)


def _merge_all(lists: list[list[int]]) -> tuple[list[Comparator], list[int]]:
    """Merge sorted lists of wires two by two; returns the comparators and the wires in ascending order."""
    comparators: list[Comparator] = []
    while len(lists) > 1:
        left_over = lists[len(lists) // 2 * 2 :]
        lists = [_merge(a, b, comparators) for a, b in zip(lists[::2], lists[1::2], strict=False)] + left_over
    return comparators, lists[0]


def _merge(a: list[int], b: list[int], comparators: list[Comparator]) -> list[int]:
    """Batcher's odd-even merge of two sorted lists of any lengths."""
    if not a or not b:
        return a + b
    if len(a) == len(b) == 1:
        comparators.append((a[0], b[0]))
        return [a[0], b[0]]
    evens = _merge(a[::2], b[::2], comparators)
    odds = _merge(a[1::2], b[1::2], comparators)
    merged = [evens[0]]
    for i in range(max(len(odds), len(evens) - 1)):
        both = odds[i : i + 1] + evens[i + 1 : i + 2]
        if len(both) == 2:
            comparators.append((both[0], both[1]))
        merged += both
    return merged


def _pruned(comparators: list[Comparator], wanted: list[int]) -> list[Comparator]:
    """Only those comparators on which the ``wanted`` wires depend."""
    needed, kept = set(wanted), []
    for first, second in reversed(comparators):
        if first in needed or second in needed:
            needed |= {first, second}
            kept.append((first, second))
    return kept[::-1]


@njit(cache=True, nogil=True)
def _exchange(wires: Any, comparators: Any) -> None:
    for c in range(comparators.shape[0]):
        low = wires[comparators[c, 0]]
        high = wires[comparators[c, 1]]
        for w in range(low.size):
            x = low[w]
            y = high[w]
            low[w] = min(x, y)
            high[w] = max(x, y)


@njit(cache=True, nogil=True)
def _copy(target: Any, source: Any) -> None:  # a slice assignment is four times slower: it checks for overlap
    for w in range(target.size):
        target[w] = source[w]


@njit(cache=True, nogil=True)
def _lower(target: Any, a: Any, b: Any) -> None:
    for w in range(target.size):
        target[w] = min(target[w], max(a[w], b[w]))


@njit(cache=True, nogil=True)
def _spans(sums: Any, k: int, width: int, spans: Any) -> Any:
    """Where a slice may hold other medians than 0: how many ``spans``, which are begin and end in its rows one behind another.

    ``sums`` (rows * width) counts, of the k slices, the voxels that are not 0. A median of numbers >= 0 is 0 unless more than
    half of them are others. Spans with a small gap between them are one.
    """
    margin, half = k - 1, k**3 // 2
    count = 0
    across = np.empty(width, np.uint16)
    for r in range(sums.size // width - margin):
        _copy(across, sums[r * width :])
        for i in range(1, k):
            _add(across, sums[(r + i) * width :])
        inside, begin, end = 0, -1, 0
        for w in range(width):
            inside += int(across[w])
            if w >= margin:
                if inside > half:
                    begin = r * width + w - margin if begin < 0 else begin
                    end = r * width + w - margin + 1
                inside -= int(across[w - margin])
        if begin < 0:
            continue
        if count and begin - spans[count - 1, 1] <= _GAP:
            spans[count - 1, 1] = end
        else:
            spans[count] = (begin, end)
            count += 1
    return count


@njit(cache=True, nogil=True)
def _add(target: Any, source: Any) -> None:
    for w in range(target.size):
        target[w] += source[w]


@njit(cache=True, nogil=True)
def _count(target: Any, source: Any) -> None:
    for w in range(target.size):
        target[w] += np.uint16(source[w] != 0)


@njit(cache=True, nogil=True)
def _filter(  # noqa: PLR0913 - arrays that a compiled loop shares
    padded: Any,
    k: int,
    width: int,
    column: Any,
    plane: Any,
    plane_wires: Any,
    pair: Any,
    pair_wires: Any,
    last: Any,
    last_wires: Any,
) -> Any:
    """Median of (S + 2r, rows * width) uint16, rows of ``width`` = W + 2r -> (S, rows * width), margins undefined.

    Pieces that may hold other medians than 0 are gathered, one behind another, until all lanes are used.
    """
    n, margin = k * k, k - 1
    depth, lanes = padded.shape[0] - margin, max(_LANES, 4 * k)
    medians = np.zeros((depth, padded.shape[1]), np.uint16)
    sums, columns = np.empty(padded.shape[1], np.uint16), np.empty((k, padded.shape[1]), np.uint16)
    spans = np.empty((padded.shape[1] // width, 2), np.int64)
    planes = np.zeros((n, lanes), np.uint16)
    pairs = np.empty((2 * n, lanes - 1), np.uint16)
    merged = np.empty((2 * n * (k // 2), lanes - margin), np.uint16)
    found = np.empty(lanes - margin, np.uint16)
    pieces = np.empty((lanes, 4), np.int64)  # slice, begin, length, first lane
    used = count = 0
    for s in range(depth):
        sums[:] = 0
        for i in range(k):
            _count(sums, padded[s + i])
        parts = _spans(sums, k, width, spans)
        if parts:
            for i in range(k):
                _copy(columns[i], padded[s + i])
            _exchange(columns, column)
        for p in range(parts):
            begin, end = spans[p]
            while begin < end:
                length = min(end - begin, lanes - margin - used)
                for j in range(n):
                    _copy(planes[j, used : used + length + margin], columns[j % k, begin + j // k * width :])
                pieces[count] = (s, begin, length, used)
                begin, used, count = begin + length, used + length + margin, count + 1
                if used + 2 * margin >= lanes:  # too little is left for a piece
                    _medians(planes, plane, plane_wires, pairs, pair, pair_wires, merged, last, last_wires, found)
                    _spread(found, pieces[:count], medians)
                    used = count = 0
    if count:
        _medians(planes, plane, plane_wires, pairs, pair, pair_wires, merged, last, last_wires, found)
        _spread(found, pieces[:count], medians)
    return medians


@njit(cache=True, nogil=True)
def _medians(  # noqa: PLR0913 - arrays that a compiled loop shares
    planes: Any,
    plane: Any,
    plane_wires: Any,
    pairs: Any,
    pair: Any,
    pair_wires: Any,
    merged: Any,
    last: Any,
    last_wires: Any,
    found: Any,
) -> None:
    """From k sorted columns of each plane, (n, lanes), to the median of the k planes from each lane on."""
    n, margin = planes.shape[0], planes.shape[1] - found.size
    _exchange(planes, plane)
    for i in range(n):
        _copy(pairs[i], planes[plane_wires[i]])
        _copy(pairs[n + i], planes[plane_wires[i], 1:])
    _exchange(pairs, pair)
    for i in range(merged.shape[0]):
        _copy(merged[i], pairs[pair_wires[i % (2 * n)], 2 * (i // (2 * n)) :])
    _exchange(merged, last)
    # The m-th smallest of two sorted lists X and Y is the minimum over i + j = m of max(X_i, Y_j): the last plane needs no
    # merge at all.
    _copy(found, merged[last_wires[n]])
    for i in range(n):
        _lower(found, planes[plane_wires[i], margin:], merged[last_wires[n - 1 - i]])


@njit(cache=True, nogil=True)
def _spread(found: Any, pieces: Any, medians: Any) -> None:
    """Put what was found where it belongs."""
    for p in range(pieces.shape[0]):
        s, begin, length, lane = pieces[p]
        _copy(medians[s, begin : begin + length], found[lane:])


_TOUCHING = np.ones((3, 3, 3), bool)
SMALLEST_SHELL = 26
"""Voxels of the smallest component that can enclose a hole: all neighbours of one voxel."""


@dataclass(frozen=True)
class ComponentRule:
    """What a component is, and how its size is told."""

    connectivity: Literal[6, 18, 26] = 26
    """Neighbours of a voxel that belong to its component."""
    size: Literal["filled", "voxels"] = "filled"
    """With the holes in it, or without. A hole is what no path of touching (26) voxels leads to from outside."""

    @property
    def structure(self) -> NDArray[np.bool_]:
        """Neighbourhood (3, 3, 3) for SciPy."""
        return ndimage.generate_binary_structure(3, {6: 1, 18: 2, 26: 3}[self.connectivity])


AS_PUBLISHED = ComponentRule()


def component_rule(scoring: ScoringConfig) -> ComponentRule:
    """What the component filter of ``scoring`` takes for a component, and for its size."""
    return ComponentRule(scoring.connectivity, scoring.component_size)


def anomaly_map(residual: NDArray[np.float16], mask: NDArray[np.bool_], kernel: int) -> NDArray[np.float16]:
    """Residual map (S, H, W), zero outside of ``mask``, then median filtered."""
    return median_filter(np.where(mask, residual, np.float16(0)), kernel)


def segment(
    scores: NDArray[np.float16], threshold: float, minimum_component_voxels: int, rule: ComponentRule = AS_PUBLISHED
) -> NDArray[np.bool_]:
    """Voxels of the anomaly map (S, H, W) strictly above ``threshold``, without small components.

    The threshold is compared exactly, also where it is no float16 number. Raises ``ValueError`` below 0.
    """
    above = scores.view(np.uint16) > threshold_bits(threshold)
    return remove_small_components(above, minimum_component_voxels, rule)


def remove_small_components(
    segmentation: NDArray[np.bool_], minimum_voxels: int, rule: ComponentRule = AS_PUBLISHED
) -> NDArray[np.bool_]:
    """Remove connected components whose size is below ``minimum_voxels``; (S, H, W) -> (S, H, W), the same one if none can be."""
    if minimum_voxels <= 1:
        return segmentation
    kept = np.zeros(segmentation.shape, bool)
    box = bounding_box(segmentation)
    if box is None:
        return kept
    inside = segmentation[box]
    labels, _ = ndimage.label(inside, rule.structure)
    sizes = np.bincount(labels.ravel())
    keep = sizes >= minimum_voxels
    keep[0] = False
    hollow = np.flatnonzero(~keep & (sizes >= SMALLEST_SHELL))
    if rule.size == "filled" and hollow[hollow > 0].size:
        _keep_filled(labels, hollow[hollow > 0], minimum_voxels, keep)
    kept[box] = keep[labels]
    return kept


def _keep_filled(
    labels: NDArray[np.int32], candidates: NDArray[np.int64], minimum_voxels: int, keep: NDArray[np.bool_]
) -> None:
    boxes = ndimage.find_objects(labels)
    for label in candidates:
        component = labels[boxes[label - 1]] == label
        filled = ndimage.binary_fill_holes(component, _TOUCHING)
        keep[label] = filled.sum() >= minimum_voxels


def bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, slice, slice] | None:
    """Smallest box that holds every true voxel of (S, H, W); none if there is none."""
    slices = np.flatnonzero(mask.any((1, 2)))
    if not slices.size:
        return None
    flat = np.asarray(mask[slices[0] : slices[-1] + 1].any(axis=0))
    rows, columns = np.flatnonzero(flat.any(axis=1)), np.flatnonzero(flat.any(axis=0))
    return (
        slice(int(slices[0]), int(slices[-1]) + 1),
        slice(int(rows[0]), int(rows[-1]) + 1),
        slice(int(columns[0]), int(columns[-1]) + 1),
    )
