"""The K x K way equals inverting the whole covariance of a slice."""

import numpy as np
import pytest

from cddpm.scoring.mahalanobis import SHRINKAGE, SMALLEST_DEVIATION, mahalanobis_map

SHAPE = (3, 6, 7)


def sample(count: int, seed: int = 0) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """An image, reconstructions that vary together along a gradient, and a brain mask; the last slice has no brain."""
    random = np.random.default_rng(seed)
    gradient = np.linspace(-1, 1, SHAPE[2])
    image = random.random(SHAPE).astype(np.float16)
    reconstructions = [
        (image + 0.1 * random.normal() * gradient + 0.05 * random.normal(size=SHAPE)).astype(np.float32)
        for _ in range(count)
    ]
    brain = random.random(SHAPE) < 0.7
    brain[2] = False
    return image, reconstructions, brain


def covariance(reconstructions, inside) -> np.ndarray:
    c = np.cov(np.stack([y[inside].astype(np.float64) for y in reconstructions]), rowvar=False)
    e = np.mean(np.diag(c)) + SMALLEST_DEVIATION**2
    return (1 - SHRINKAGE) * c + SHRINKAGE * np.diag(np.diag(c)) + e * np.eye(len(c))


@pytest.mark.parametrize("count", [2, 3, 12, 60])
def test_squares_add_up_to_the_mahalanobis_distance(count):
    image, reconstructions, brain = sample(count)
    found = mahalanobis_map(image, reconstructions, brain)
    for s in range(2):
        planes, inside = [y[s] for y in reconstructions], brain[s]
        d = (image[s].astype(np.float64) - np.mean(planes, axis=0))[inside]
        expected = d @ np.linalg.solve(covariance(planes, inside), d)
        assert np.sum(found[s].astype(np.float64) ** 2) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("count", [2, 5, 60])
def test_each_voxel_is_that_of_the_dense_root(count):
    image, reconstructions, brain = sample(count, seed=1)
    found = mahalanobis_map(image, reconstructions, brain)
    for s in range(2):
        planes, inside = [y[s] for y in reconstructions], brain[s]
        sigma = covariance(planes, inside)
        c = np.cov(np.stack([y[inside].astype(np.float64) for y in planes]), rowvar=False)
        root = np.sqrt(np.diag(sigma) - (1 - SHRINKAGE) * np.diag(c))  # of the diagonal part D
        values, vectors = np.linalg.eigh(sigma / root / root[:, None])
        whitening = vectors @ np.diag(values**-0.5) @ vectors.T / root
        d = (image[s].astype(np.float64) - np.mean(planes, axis=0))[inside]
        assert found[s][inside] == pytest.approx(np.abs(whitening @ d), rel=1e-4, abs=1e-5)


def test_outside_of_the_brain_is_nothing_and_has_no_say():
    image, reconstructions, brain = sample(4)
    found = mahalanobis_map(image, reconstructions, brain)
    assert not found[~brain].any()
    assert np.isfinite(found).all()
    other = image.copy()
    other[~brain] = 9
    assert np.array_equal(mahalanobis_map(other, reconstructions, brain), found)


def test_equal_reconstructions_leave_the_plain_error():
    image, reconstructions, brain = sample(1)
    found = mahalanobis_map(image, reconstructions * 3, brain)
    expected = np.abs(image.astype(np.float32) - reconstructions[0]) * brain / SMALLEST_DEVIATION
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-3)


def test_an_error_along_which_reconstructions_vary_counts_less():
    _, reconstructions, brain = sample(30)
    brain[:2] = True
    gradient = np.broadcast_to(np.linspace(-1, 1, SHAPE[2]), SHAPE)
    flipped = gradient * np.where(np.arange(SHAPE[1]) % 2, 1, -1)[:, None]
    middle = np.mean(reconstructions, axis=0)
    usual, unusual = (mahalanobis_map(middle + 0.1 * g, reconstructions, brain)[0] for g in (gradient, flipped))
    assert np.sum(usual**2) < 0.5 * np.sum(unusual**2)


def test_one_reconstruction_is_refused():
    image, reconstructions, brain = sample(1)
    with pytest.raises(ValueError, match="1 reconstructions; a covariance needs two"):
        mahalanobis_map(image, reconstructions, brain)
