import numpy as np
import pytest

from cddpm.data.phantom_anatomy import Anatomy
from cddpm.data.phantom_grid import Canvas, Grid
from cddpm.data.phantom_scan import SIGNAL, scan

GRID = Grid(4.0)
INSIDE = np.ones(GRID.shape, bool)
THIRDS = np.digitize(GRID.mesh[1], (-32, 32))
"""Three slabs, each of one tissue."""


def slabs(mask: np.ndarray) -> Anatomy:
    csf, grey, white = ((i == THIRDS).ravel().astype(np.float32) for i in range(3))
    nothing = np.zeros_like(csf)
    return Anatomy(mask.ravel(), grey, white, csf, nothing, nothing, nothing, nothing)


@pytest.mark.parametrize(("contrast", "rising"), [("t1", [0, 1, 2]), ("t2", [2, 1, 0])])
def test_contrast_orders_fluid_grey_and_white(contrast, rising):
    image = scan(np.random.default_rng(0), Canvas(GRID, INSIDE), slabs(INSIDE), None, contrast)

    means = [image[slab == THIRDS].mean() for slab in rising]

    assert means == sorted(means)
    expected = SIGNAL[contrast]["grey"] / SIGNAL[contrast]["white"]
    assert image[THIRDS == 1].mean() / image[THIRDS == 2].mean() == pytest.approx(expected, rel=0.25)


def test_outside_of_the_mask_is_zero_and_inside_is_not():
    mask = GRID.mesh[0] > 0

    image = scan(np.random.default_rng(0), Canvas(GRID, INSIDE), slabs(mask), None, "t1")

    assert image.dtype == np.int16
    assert not image[~mask].any()
    assert image[mask].min() >= 1


def test_noise_is_there_and_small():
    image = scan(np.random.default_rng(0), Canvas(GRID, INSIDE), slabs(INSIDE), None, "t2").astype(float)

    steps = np.diff(image[:, THIRDS[0, :, 0] == 0], axis=0) / np.sqrt(2) / image[THIRDS == 0].mean()

    assert 0.01 < steps.std() < 0.05
