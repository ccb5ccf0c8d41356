"""Exact quantile mapping, against counting voxels one by one."""

import numpy as np
import pytest

from cddpm.scoring.histogram_matching import matched


def plain(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The smallest value v of x with F_x(v) >= F_y(y), for each value of y."""
    result = []
    for value in y:
        share = np.count_nonzero(y <= value)
        result.append(min(v for v in x if np.count_nonzero(x <= v) >= share))
    return np.array(result)


@pytest.mark.parametrize("decimals", [1, 2, 6])
def test_equals_counting(decimals):
    random = np.random.default_rng(decimals)
    image = np.round(random.random((3, 5, 7)), decimals).astype(np.float16)
    reconstruction = np.round(random.normal(size=(3, 5, 7)), decimals).astype(np.float32)
    brain = random.random((3, 5, 7)) < 0.6
    found = matched(reconstruction, image, brain)
    assert np.array_equal(found[brain], plain(reconstruction[brain], image[brain].astype(np.float32)))
    assert np.array_equal(found[~brain], reconstruction[~brain])


def test_has_the_very_intensities_of_the_image_in_its_own_order():
    random = np.random.default_rng(0)
    image = random.random((4, 6, 6)).astype(np.float16)
    reconstruction = random.random((4, 6, 6)).astype(np.float32) ** 3 - 2
    found = matched(reconstruction, image, np.ones(image.shape, bool))
    assert np.array_equal(np.sort(found, axis=None), np.sort(image, axis=None))
    assert np.all(np.diff(found.ravel()[np.argsort(reconstruction, axis=None)]) >= 0)


def test_undoes_any_change_of_contrast():
    image = np.random.default_rng(1).random((2, 5, 5)).astype(np.float16)
    everywhere = np.ones(image.shape, bool)
    for change in (np.sqrt, np.exp, lambda x: 3 * x - 1):
        assert np.array_equal(matched(change(image.astype(np.float32)), image, everywhere), image)


def test_of_no_brain_nothing_changes():
    y = np.ones((1, 2, 2), np.float32)
    assert np.array_equal(matched(y, np.zeros((1, 2, 2), np.float16), np.zeros((1, 2, 2), bool)), y)
