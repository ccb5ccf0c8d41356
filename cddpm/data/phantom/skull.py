"""What lies around a drawn brain before it is stripped: fluid, bone, scalp and noise, for whatever begins with raw scans."""

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Kind = TypeVar("Kind", bound=np.number[Any])

ROOM_MM = 24.0
"""Around the phantom's box, for the skull and the air beside it."""
SHELLS_MM = ((0.0, 2.0), (2.0, 8.0), (8.0, 14.0))
"""Distances from the brain between which fluid, bone and scalp lie."""
_SIGNALS = {"t1": (0.3, 0.1, 1.6), "t2": (1.7, 0.1, 1.3)}
_NOISE = 0.03


def room(array: npt.NDArray[Kind], voxel_mm: float) -> npt.NDArray[Kind]:
    """``array`` (X, Y, Z) of a phantom with room for its skull on all sides, filled with 0."""
    return np.pad(array, round(ROOM_MM / voxel_mm))


def with_skull(
    scan: npt.NDArray[np.float32], mask: npt.NDArray[np.uint8], contrast: str, voxel_mm: float, seed: int
) -> npt.NDArray[np.float32]:
    """The head (X, Y, Z), with ``room``, of a phantom's ``scan`` and brain ``mask``, whose intensities are as they were.

    ``contrast``: t1 or t2. Shells have signals in parts of the brain's median; noise is Rician, of ``seed``.
    """
    brain = room(mask, voxel_mm) > 0
    image = room(scan, voxel_mm).astype(np.float32)
    away = ndimage.distance_transform_edt(~brain, sampling=voxel_mm)
    median = float(np.median(image[brain]))
    for (low, high), signal in zip(SHELLS_MM, _SIGNALS[contrast], strict=True):
        image[(away > low) & (away <= high)] = signal * median
    noise = np.random.default_rng(seed).standard_normal((2, *image.shape)) * _NOISE * median
    around = np.hypot(ndimage.gaussian_filter(image, 0.5) + noise[0], noise[1])
    return np.where(brain, image, around).astype(np.float32)
