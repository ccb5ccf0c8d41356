"""From an input and its reconstruction to a residual map inside the eroded brain mask."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Residual = Literal["l1", "l2", "positive", "negative"]

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
    """What the reconstruction x0 does not explain of the image x, voxel by voxel, never negative, as float16.

    ``l1`` |x - x0|, ``l2`` (x - x0)^2, ``positive`` max(x - x0, 0), ``negative`` max(x0 - x, 0). Values beyond float16's
    range are set to its largest number. Raises ``ValueError`` for another kind.
    """
    difference = image.astype(np.float32)
    difference -= reconstruction
    if kind == "l1":
        np.abs(difference, out=difference)
    elif kind == "l2":
        np.square(difference, out=difference)
    elif kind == "negative":
        np.negative(difference, out=difference)
    elif kind != "positive":
        raise ValueError(f"residual: {kind!r}; allowed are 'l1', 'l2', 'positive' and 'negative'")
    np.clip(difference, 0.0, FLOAT16_MAX, out=difference)
    return difference.astype(np.float16)
