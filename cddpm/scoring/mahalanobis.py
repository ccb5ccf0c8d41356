"""How far an image lies from the distribution of its own reconstructions, voxel by voxel, through a K x K problem.

Letters: K reconstructions (noise levels x seeds), S slices, P voxels of a slice; d the image minus the mean reconstruction.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
