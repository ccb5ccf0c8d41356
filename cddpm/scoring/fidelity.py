"""How faithfully a reconstruction gives back its input, in the brain, in lesions and in healthy tissue.

Intensities are those of the slice store, [0, 1] but for a little overshoot; the data range of SSIM and PSNR is 1.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cddpm.scoring.postprocess import bounding_box

SSIM_SIGMA = 1.5
SSIM_RADIUS = 5
"""Pixels: the window is 11 x 11."""
_C1, _C2 = 0.01**2, 0.03**2


@dataclass(frozen=True)
class Fidelity:
    """Differences over the brain voxels of one volume."""

    l1: float
    """Mean absolute difference."""
    l2: float
    """Mean squared difference."""
    ssim: float
    """Mean structural similarity, at most 1."""
    psnr: float | None
    """Peak signal-to-noise ratio in dB, 10 log10(1 / l2); none for equal images."""


@dataclass(frozen=True)
class LesionError:
    """L1 of one volume in lesions and in the rest of the brain; none where there is no such voxel."""

    lesion: float | None
    tissue: float | None

    @property
    def ratio(self) -> float | None:
        """Lesion / tissue: above 1 if the model restores lesions worse than healthy tissue, as it should."""
        return self.lesion / self.tissue if self.lesion is not None and self.tissue else None


def fidelity(
    image: NDArray[np.floating], reconstruction: NDArray[np.floating], brain: NDArray[np.bool_]
) -> Fidelity | None:
    """Compare inside the brain mask; three (S, H, W) arrays. None for an empty mask; ``ValueError`` for other shapes."""
    _same_shape(image, reconstruction, brain)
    box = bounding_box(brain)
    if box is None:
        return None
    inside = brain[box]
    x, y = (np.where(inside, a[box].astype(np.float64), 0.0) for a in (image, reconstruction))
    difference = (x - y)[inside]
    l2 = float(np.mean(difference**2))
    return Fidelity(
        l1=float(np.mean(np.abs(difference))),
        l2=l2,
        ssim=float(np.mean(ssim_map(x, y)[inside])),
        psnr=-10 * math.log10(l2) if l2 > 0 else None,
    )


def ssim_map(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Structural similarity of each axial slice of two volumes (S, H, W), voxel by voxel.

    Wang et al. 2004, equation 13: Gaussian window of 11 x 11 pixels and sigma 1.5, K1 = 0.01, K2 = 0.03, data range 1.
    Beyond the border everything is 0, like the background of a brain mask.
    """
    mean_x, mean_y = _window(x), _window(y)
    variance_x, variance_y = _window(x * x) - mean_x**2, _window(y * y) - mean_y**2
    covariance = _window(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    return luminance * (2 * covariance + _C2) / (variance_x + variance_y + _C2)


def _window(array: NDArray[np.float64]) -> NDArray[np.float64]:
    return ndimage.gaussian_filter(array, SSIM_SIGMA, mode="constant", radius=SSIM_RADIUS, axes=(1, 2))


def lesion_error(
    image: NDArray[np.floating],
    reconstruction: NDArray[np.floating],
    brain: NDArray[np.bool_],
    lesion: NDArray[np.bool_],
) -> LesionError:
    """L1 inside the brain mask, of lesion voxels and of the others; four (S, H, W) arrays.

    Lesion voxels outside of the brain mask are left out: no reconstruction is asked for there. Raises ``ValueError`` if
    the shapes differ.
    """
    _same_shape(image, reconstruction, brain, lesion)
    error = np.abs(image[brain].astype(np.float64) - reconstruction[brain])
    ill = lesion[brain]
    return LesionError(_mean(error[ill]), _mean(error[~ill]))


def _mean(values: NDArray[np.float64]) -> float | None:
    return float(np.mean(values)) if values.size else None


def _same_shape(*arrays: NDArray) -> None:
    if len({array.shape for array in arrays}) > 1:
        raise ValueError(f"arrays of shapes {', '.join(str(array.shape) for array in arrays)}; one shape is needed")
