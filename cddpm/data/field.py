"""The box around a brain that is looked at: the brain's mask alone decides it, not how much of its background a file holds.

It may begin before a file's first voxel and end behind its last one; what lies there is background.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Shape = tuple[int, int, int]
STRAY_VOXELS = 0.001
"""Fraction of a mask's voxels that may lie beyond each face of the box whose centre counts: strays do not move a brain."""


def around(brain: npt.NDArray[np.bool_], needed: Sequence[float], margin: Sequence[float]) -> tuple[Shape, Shape]:
    """(first voxel, shape) of the field along the axes of ``brain`` (X, Y, Z), which holds a voxel at least.

    Its centre is that of the box of all voxels but ``STRAY_VOXELS`` on each side. It holds all of them and ``margin`` voxels
    more, but no more than ``needed`` + 2 ``margin`` voxels.
    """
    found = []
    for axis in range(3):
        counts = np.count_nonzero(brain, axis=tuple(other for other in range(3) if other != axis))
        found.append(_along(counts, needed[axis], math.ceil(margin[axis])))
    (x, y, z), (i, j, k) = zip(*found, strict=True)
    return (x, y, z), (i, j, k)


def _along(counts: npt.NDArray[np.intp], needed: float, margin: int) -> tuple[int, int]:
    """(first voxel, size) for the brain voxels per plane, ``counts``."""
    some, total = np.flatnonzero(counts), int(counts.sum())
    low = int(np.searchsorted(np.cumsum(counts), STRAY_VOXELS * total, "right"))
    high = len(counts) - int(np.searchsorted(np.cumsum(counts[::-1]), STRAY_VOXELS * total, "right"))
    grow = max(low - int(some[0]), int(some[-1]) + 1 - high) + margin
    wide = high - low + 2 * grow
    grow -= max(0, wide - math.ceil(needed) - 2 * margin) // 2
    return low - grow, high - low + 2 * grow


def take(array: npt.NDArray[Any], start: Shape, shape: Shape) -> npt.NDArray[Any]:
    """The field of ``array`` (X, Y, Z), 0 where it lies outside of it."""
    result = np.zeros(shape, array.dtype)
    there, here = _windows(array.shape, start, shape)
    result[here] = array[there]
    return result


def within(start: Shape, shape: Shape, array: Shape) -> tuple[slice, ...]:
    """The part of an array with the shape ``array`` that lies in the field."""
    return _windows(array, start, shape)[0]


def put_back(field: npt.NDArray[Any], start: Shape, shape: Shape) -> npt.NDArray[Any]:
    """The array of ``shape`` that holds ``field`` where it was taken, and 0 elsewhere."""
    result = np.zeros(shape, field.dtype)
    there, here = _windows(shape, start, field.shape)
    result[there] = field[here]
    return result


def _windows(
    array: Sequence[int], start: Sequence[int], field: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where a field lies in its array, and the same voxels in the field."""
    ends = [(max(0, s), max(0, s, min(n, s + f))) for n, s, f in zip(array, start, field, strict=True)]
    there = tuple(slice(a, b) for a, b in ends)
    return there, tuple(slice(a - s, b - s) for (a, b), s in zip(ends, start, strict=True))
