"""From an input and its reconstructions to a residual map inside the eroded brain mask.

Letters: K reconstructions (noise levels x seeds), S slices, P voxels of a slice; d the image minus the mean reconstruction.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

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
