"""A reconstruction with the intensities of its input: what is left of the difference is where they lie, not what they are."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def matched(
    reconstruction: NDArray[np.float32], image: NDArray[np.floating[Any]], brain: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """``reconstruction`` y with the distribution of ``image`` x inside the brain mask, unchanged elsewhere; (S, H, W).

    Exact quantile mapping, with the empirical distributions F of the brain voxels: y becomes the smallest value v of x with
    F_x(v) >= F_y(y) (Gonzalez and Woods, "Digital image processing", histogram specification). Equal values stay equal, and
    if y has no equal values the result has the very intensities of x. The order of the voxels by intensity is kept.
    """
    values = reconstruction[brain]
    order = np.argsort(values, kind="stable")
    ascending = values[order]
    wanted = np.sort(image[brain]).astype(np.float32)
    last = _last_of_equals(ascending)
    result = reconstruction.copy()
    moved = np.empty_like(values)
    moved[order] = wanted[last]
    result[brain] = moved
    return result


def _last_of_equals(ascending: NDArray[np.float32]) -> NDArray[np.int64]:
    """Per sorted value (N,) the last index at which it stands."""
    if not ascending.size:
        return np.empty(0, np.int64)
    ends = np.flatnonzero(np.append(ascending[1:] != ascending[:-1], True))
    return np.repeat(ends, np.diff(ends, prepend=-1))
