import numpy as np
import pytest

from cddpm.data.phantom_subject import DATASETS, SMALL_SHAPE, Subject, draw


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
