"""1 - SSIM equals the formula written plainly, for every window."""

import numpy as np
import pytest
from scipy import ndimage

from cddpm.scoring.metrics import ssim_map
from cddpm.scoring.residual import ENSEMBLE_WINDOWS, dissimilarity, window_taps


def pair(shape=(3, 21, 26)) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    x = random.random(shape)
    return x, x + 0.2 * random.normal(size=shape)


def plain(x: np.ndarray, y: np.ndarray, k: int) -> np.ndarray:
    """Every moment by a full k x k window in float64."""
    grid = np.arange(k) - k // 2
    window = np.exp(-0.5 * (grid[:, None] ** 2 + grid**2) / (1.5 * k / 11) ** 2)
    window /= window.sum()

    def blur(a):
        return np.stack([ndimage.correlate(plane, window, mode="constant") for plane in a])

    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    return 1 - (2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))


@pytest.mark.parametrize("k", [1, *ENSEMBLE_WINDOWS])
def test_equals_the_plain_formula(k):
    x, y = pair()
    assert np.abs(dissimilarity(x, y, (k,)) - plain(x, y, k)).max() < 2e-5


def test_a_window_may_be_wider_than_the_slice():
    x, y = pair((2, 5, 4))
    assert np.abs(dissimilarity(x, y, (17,)) - plain(x, y, 17)).max() < 2e-5


def test_eleven_pixels_are_the_usual_ssim():
    x, y = pair()
    assert np.abs(dissimilarity(x, y, (11,)) - (1 - ssim_map(x, y))).max() < 2e-5


def test_an_ensemble_is_the_mean_over_its_windows():
    x, y = pair()
    assert len(ENSEMBLE_WINDOWS) == 8
    expected = np.mean([plain(x, y, k) for k in ENSEMBLE_WINDOWS], axis=0)
    assert np.abs(dissimilarity(x, y, ENSEMBLE_WINDOWS) - expected).max() < 2e-5


def test_equal_images_are_alike_and_slices_do_not_touch():
    x, y = pair()
    assert not dissimilarity(x, x, (3, 11)).any()
    y[0] = x[0]
    found = dissimilarity(x, y, (11,))
    assert not found[0].any()
    assert np.array_equal(found[1:], dissimilarity(x[1:], y[1:], (11,)))


def test_impossible_windows_and_shapes_are_refused():
    with pytest.raises(ValueError, match="window: 4; an odd number"):
        window_taps(4)
    with pytest.raises(ValueError, match="differ in shape"):
        dissimilarity(np.zeros((1, 2, 3)), np.zeros((1, 3, 2)), (3,))
