"""From an input and its reconstructions to a residual map inside the eroded brain mask: by intensity, or by structure (SSIM).

Letters: K reconstructions (noise levels x seeds), S slices, P voxels of a slice; d the image minus the mean reconstruction. Of
windows: S, H, W slices, rows and columns; k width of the window in pixels, r = k // 2.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cddpm.compiled import njit
from cddpm.scoring import half
from cddpm.scoring.metrics import SSIM_RADIUS, SSIM_SIGMA

Residual = Literal["l1", "l2", "positive", "negative"]
"""Those of a voxel that depend on nothing but its two intensities."""
FLOAT16_MAX = float(np.finfo(np.float16).max)
_IN_PLANE_CROSS = ndimage.generate_binary_structure(2, 1)[None]


def erosion_iterations(shape: tuple[int, ...], divisor: int | None) -> int:
    """How often a brain mask of ``shape`` (S, H, W) is eroded: (size of axis 1 of a slice) // ``divisor``; 0 if None."""
    return 0 if divisor is None else shape[2] // divisor


def eroded_mask(mask: NDArray[np.uint8], divisor: int | None) -> NDArray[np.bool_]:
    """Erode a brain mask (S, H, W) slice by slice with the 4-neighbourhood; outside of the volume counts as background.

    The number of iterations follows the size of the slice, so that the same width in mm is removed at any resolution.
    """
    return eroded(mask, erosion_iterations(mask.shape, divisor))


def eroded(mask: NDArray[np.uint8], iterations: int) -> NDArray[np.bool_]:
    """As ``eroded_mask``, so many times."""
    inside = mask > 0
    if iterations == 0:  # to SciPy, 0 iterations mean "until nothing changes"
        return inside
    return ndimage.binary_erosion(inside, _IN_PLANE_CROSS, iterations, border_value=0)


def difference(image: NDArray[np.floating], reconstruction: NDArray[np.float32], kind: Residual) -> NDArray[np.float32]:
    """What the reconstruction x0 does not explain of the image x, voxel by voxel, never negative.

    ``l1`` |x - x0|, ``l2`` (x - x0)^2, ``positive`` max(x - x0, 0), ``negative`` max(x0 - x, 0). Raises ``ValueError`` for
    another kind.
    """
    result = half.single(image) if image.dtype == np.float16 else image.astype(np.float32)
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
    return half.positive(residual)


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


SHRINKAGE = 0.5
"""Part of the covariances between voxels that is left out: K samples tell little about P x P of them."""
SMALLEST_DEVIATION = 1e-3
"""Standard deviation that every voxel has at least, in units of intensity: images and reconstructions are float16."""


def mahalanobis_map(
    image: NDArray[np.floating[Any]], reconstructions: Sequence[NDArray[np.float32]], brain: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Whitened error |W d| of every brain voxel, W'W = Sigma^-1, and 0 elsewhere; arrays (S, H, W), slice by slice.

    In each slice the squares of the map add up to the squared Mahalanobis distance d' Sigma^-1 d of the image from the
    distribution of its reconstructions (Behrendt et al. 2024, "Leveraging the Mahalanobis distance to enhance unsupervised
    brain MRI anomaly detection", MICCAI, arXiv 2407.12474). Ours is how K samples become a covariance that can be inverted,
    and how the distance is shared among voxels: with C the sample covariance (divisor K - 1) of the slice's brain voxels,

        Sigma = (1 - a) C + a diag(C) + e I,    a = SHRINKAGE,    e = mean of diag(C) + SMALLEST_DEVIATION^2.

    With D the diagonal matrix of the last two terms and B the centred samples times sqrt((1 - a) / (K - 1)),
    F = D^(-1/2) B is (P, K), Sigma = D^(1/2) (I + F F') D^(1/2) and W = (I + F F')^(-1/2) D^(-1/2): the eigenvectors of F'F,
    which is K x K, give it exactly, and nothing of P x P is ever made. Raises ``ValueError`` for fewer than two
    reconstructions.
    """
    if len(reconstructions) < 2:
        raise ValueError(f"{len(reconstructions)} reconstructions; a covariance needs two or more")
    flat = (len(image), -1)
    samples = np.stack([y.reshape(flat) for y in reconstructions], axis=1)  # (S, K, P)
    inside = brain.reshape(flat)
    mean = samples.mean(axis=1)
    samples -= mean[:, None]
    samples *= inside[:, None]
    deviation = _deviation(samples, inside)
    error = (image.reshape(flat).astype(np.float32) - mean) * inside / deviation
    samples *= np.float32(np.sqrt((1 - SHRINKAGE) / (len(reconstructions) - 1))) / deviation[:, None]
    return np.abs(_whitened(error, samples)).reshape(image.shape)


def _deviation(samples: NDArray[np.float32], inside: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Square root of D, (S, P), of centred samples (S, K, P)."""
    variance = np.einsum("skp,skp->sp", samples, samples) / np.float32(samples.shape[1] - 1)
    floor = variance.sum(axis=1, dtype=np.float64) / np.maximum(inside.sum(axis=1), 1) + SMALLEST_DEVIATION**2
    return np.sqrt(np.float32(SHRINKAGE) * variance + floor[:, None].astype(np.float32))


def _whitened(error: NDArray[np.float32], factors: NDArray[np.float32]) -> NDArray[np.float32]:
    """(I + F F')^(-1/2) z of every slice: z (S, P), F' (S, K, P).

    F'F = V diag(q) V' gives z + F V diag(g(q)) V' F' z with g(q) = ((1 + q)^(-1/2) - 1) / q, written without a difference.
    """
    gram = np.matmul(factors, factors.transpose(0, 2, 1)).astype(np.float64)
    q, vectors = np.linalg.eigh(gram)
    root = np.sqrt(1 + np.maximum(q, 0))
    gain = -1 / (root * (1 + root))
    seen = np.matmul(factors, error[:, :, None])[:, :, 0].astype(np.float64)  # F'z, (S, K)
    weights = np.einsum("sij,sj,skj,sk->si", vectors, gain, vectors, seen)
    return error + np.matmul(weights[:, None].astype(np.float32), factors)[:, 0]


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
