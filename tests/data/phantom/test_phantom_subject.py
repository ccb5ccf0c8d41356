import numpy as np
import pytest

from cddpm.data.phantom.anatomy import Anatomy, Canvas, Grid
from cddpm.data.phantom.subject import DATASETS, SIGNAL, SMALL_SHAPE, Subject, draw, scan


@pytest.mark.slow
def test_a_scan_does_not_depend_on_which_others_are_drawn():
    subject = Subject(3, "Brats21", 2, 2.0)

    alone, both = draw(subject, ("t2",)), draw(subject, ("t1", "t2"))

    np.testing.assert_array_equal(alone.scans["t2"], both.scans["t2"])


@pytest.mark.slow
@pytest.mark.parametrize("other", [Subject(1, "IXI", 0, 2.0), Subject(0, "IXI", 1, 2.0), Subject(0, "MSLUB", 0, 2.0)])
def test_seed_data_set_and_index_each_give_another_brain(other):
    one, two = (draw(subject, ("t1",)).mask for subject in (Subject(0, "IXI", 0, 2.0), other))

    assert one.shape != two.shape or (one != two).mean() > 0.01


@pytest.mark.parametrize("dataset", DATASETS)
def test_shape_and_orientation(dataset):
    small, full = Subject(0, dataset, 0, 2.0), Subject(0, dataset, 0, 1.0)

    assert small.shape == SMALL_SHAPE[dataset]
    assert full.shape == tuple(2 * n for n in small.shape)
    assert np.array_equal(np.diag(small.affine), [-2, -2, 2, 1])  # to the left, to the back, upwards
    middle = small.affine @ [*((np.array(small.shape) - 1) / 2), 1]
    np.testing.assert_allclose(middle, [0, 0, 0, 1])


def test_a_scan_has_the_announced_shape_and_is_centred():
    subject = Subject(0, "IXI", 0, 2.0)
    mask = draw(subject, ("t1",)).mask

    assert mask.shape == subject.shape
    centre = [np.average(np.arange(n), weights=mask.sum(axis=tuple({0, 1, 2} - {a}))) for a, n in enumerate(mask.shape)]
    assert np.abs(np.array(centre) - (np.array(mask.shape) - 1) / 2).max() < 5


def test_healthy_subjects_have_no_segmentation():
    assert draw(Subject(0, "IXI", 0, 2.0), ("t1",)).segmentation is None


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
