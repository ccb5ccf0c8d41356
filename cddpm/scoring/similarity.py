"""How unlike an image and its reconstruction are in structure: 1 - SSIM, voxel by voxel, for windows of any odd width.

Letters: S, H, W slices, rows and columns; k width of the window in pixels, r = k // 2.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cddpm.compiled import njit
from cddpm.scoring.fidelity import SSIM_RADIUS, SSIM_SIGMA

ENSEMBLE_WINDOWS = (3, 5, 7, 9, 11, 13, 15, 17)
_C1, _C2 = np.float32(0.01**2), np.float32(0.03**2)


def dissimilarity(
    x: NDArray[np.floating[Any]], y: NDArray[np.floating[Any]], windows: Sequence[int]
) -> NDArray[np.float32]:
    """Mean over ``windows`` of 1 - SSIM of each axial slice of two volumes (S, H, W); in [0, 2], float32.

    SSIM is equation 13 of Wang et al. 2004 (K1 = 0.01, K2 = 0.03, data range 1) with a Gaussian window of k x k pixels whose
    standard deviation is 1.5 k / 11 pixels: at 11 it is theirs. Beyond the border everything is 0, like the background of a
    brain mask. The mean over several widths follows Behrendt et al. 2024 ("Diffusion models with ensembled structure-based
    anomaly scoring", ISBI, arXiv 2403.14262); that all widths weigh the same, and which they are (``ENSEMBLE_WINDOWS``), is
    ours. Raises ``ValueError`` if the shapes differ, or for an even width.
    """
    if x.shape != y.shape:
        raise ValueError(f"image {x.shape} and reconstruction {y.shape} differ in shape")
    total = np.zeros(x.shape, np.float32)
    one, other = (np.ascontiguousarray(a, dtype=np.float32) for a in (x, y))
    for k in windows:
        _add_dissimilarity(one, other, window_taps(k), total)
    total /= np.float32(len(windows))
    return total


@lru_cache
def window_taps(k: int) -> NDArray[np.float32]:
    """Weights (k,) of the window along each axis; their sum is 1. Raises ``ValueError`` for an even or negative width."""
    if k < 1 or k % 2 == 0:
        raise ValueError(f"window: {k}; an odd number of pixels is needed")
    sigma = SSIM_SIGMA * k / (2 * SSIM_RADIUS + 1)
    weights = np.exp(-0.5 * (np.arange(k) - k // 2) ** 2 / sigma**2)
    return (weights / weights.sum()).astype(np.float32)


@njit(cache=True, nogil=True, error_model="numpy")
def _add_dissimilarity(x: Any, y: Any, taps: Any, total: Any) -> None:
    """Add 1 - SSIM of every slice to ``total``; five moments of one slice at a time, so that they stay in the cache.

    Rows lie one after the other with a margin of zeros, so that both blurs run over the whole slice as one line.
    """
    slices, height, width = x.shape
    radius = taps.size // 2
    pitch = width + 2 * radius
    margin = 2 * radius
    moments = np.zeros((5, height * pitch + margin), np.float32)
    rows = np.zeros((5, (height + margin) * pitch), np.float32)  # blurred along W, between rows of zeros
    both = np.empty((5, height * pitch), np.float32)
    for s in range(slices):
        for h in range(height):
            for w in range(width):
                a = x[s, h, w]
                b = y[s, h, w]
                i = h * pitch + radius + w
                moments[0, i] = a
                moments[1, i] = b
                moments[2, i] = a * a
                moments[3, i] = b * b
                moments[4, i] = a * b
        for m in range(5):
            _weigh(moments[m], taps, 1, rows[m, radius * pitch : (radius + height) * pitch])
            _weigh(rows[m], taps, pitch, both[m])
        for h in range(height):
            _unlike(both[:, h * pitch : h * pitch + width], total[s, h])


@njit(cache=True, nogil=True)
def _weigh(source: Any, taps: Any, step: int, target: Any) -> None:
    """Blur along one axis, whose neighbours lie ``step`` apart; the taps are symmetric, so two go at once."""
    last = taps.size - 1
    middle = source[(last // 2) * step :]
    tap = taps[last // 2]
    for w in range(target.size):
        target[w] = tap * middle[w]
    for j in range(last // 2):
        tap = taps[j]
        before = source[j * step :]
        after = source[(last - j) * step :]
        for w in range(target.size):
            target[w] += tap * (before[w] + after[w])


@njit(cache=True, nogil=True, error_model="numpy")
def _unlike(moments: Any, target: Any) -> None:
    one = np.float32(1)
    two = np.float32(2)
    for w in range(target.size):
        mx = moments[0, w]
        my = moments[1, w]
        product = mx * my
        squares = mx * mx + my * my
        covariance = moments[4, w] - product
        variances = moments[2, w] + moments[3, w] - squares
        similar = (two * product + _C1) * (two * covariance + _C2) / ((squares + _C1) * (variances + _C2))
        target[w] += max(one - similar, np.float32(0))
