"""From an input and its reconstruction to a residual map inside the eroded brain mask."""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Residual = Literal["l1", "l2", "positive", "negative"]
VOXELWISE: tuple[str, ...] = get_args(Residual)
"""Residuals of a voxel that depend on nothing but its two intensities."""

FLOAT16_MAX = float(np.finfo(np.float16).max)
_IN_PLANE_CROSS = ndimage.generate_binary_structure(2, 1)[None]


def erosion_iterations(shape: tuple[int, ...], divisor: int | None) -> int:
    """How often a brain mask of ``shape`` (S, H, W) is eroded: (size of axis 1 of a slice) // ``divisor``; 0 if None."""
    return 0 if divisor is None else shape[2] // divisor


def eroded_mask(mask: NDArray[np.uint8], divisor: int | None) -> NDArray[np.bool_]:
    """Erode a brain mask (S, H, W) slice by slice with the 4-neighbourhood; outside of the volume counts as background.

    The number of iterations follows the size of the slice, so that the same width in mm is removed at any resolution.
    """
    iterations = erosion_iterations(mask.shape, divisor)
    inside = mask > 0
    if iterations == 0:  # to SciPy, 0 iterations mean "until nothing changes"
        return inside
    return ndimage.binary_erosion(inside, _IN_PLANE_CROSS, iterations, border_value=0)


def residual_map(
    image: NDArray[np.floating], reconstruction: NDArray[np.float32], kind: Residual
) -> NDArray[np.float16]:
    """``difference`` as float16."""
    return anomaly_scores(difference(image, reconstruction, kind))


def difference(image: NDArray[np.floating], reconstruction: NDArray[np.float32], kind: Residual) -> NDArray[np.float32]:
    """What the reconstruction x0 does not explain of the image x, voxel by voxel, never negative.

    ``l1`` |x - x0|, ``l2`` (x - x0)^2, ``positive`` max(x - x0, 0), ``negative`` max(x0 - x, 0). Raises ``ValueError`` for
    another kind.
    """
    result = image.astype(np.float32)
    result -= reconstruction
    if kind == "l1":
        return np.abs(result, out=result)
    if kind == "l2":
        return np.square(result, out=result)
    if kind == "positive":
        return np.maximum(result, 0, out=result)
    if kind == "negative":
        return np.maximum(np.negative(result, out=result), 0, out=result)
    raise ValueError(f"residual: {kind!r}; allowed are 'l1', 'l2', 'positive' and 'negative'")


def anomaly_scores(residual: NDArray[np.float32]) -> NDArray[np.float16]:
    """A residual as float16, >= 0: below 0 counts as 0, and beyond float16's range as its largest number."""
    return np.clip(residual, 0.0, FLOAT16_MAX).astype(np.float16)
