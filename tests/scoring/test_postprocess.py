"""Thresholding and the removal of small components."""

import numpy as np
import pytest

from cddpm.scoring.postprocess import anomaly_map, bounding_box, remove_small_components, segment
from cddpm.scoring.residual import anomaly_scores, difference, eroded_mask


def voxels(shape, *places) -> np.ndarray:
    volume = np.zeros(shape, bool)
    for place in places:
        volume[place] = True
    return volume


def test_components_of_7_go_and_of_8_stay():
    volume = voxels((3, 12, 12), np.s_[0, 0, 0:7], np.s_[2, 6, 0:8])
    assert np.argwhere(remove_small_components(volume, 8))[:, 0].tolist() == [2] * 8


def test_voxels_that_touch_at_a_corner_are_one_component():
    diagonal = voxels((8, 8, 8), *[(i, i, i) for i in range(8)])
    assert remove_small_components(diagonal, 8).sum() == 8
    assert remove_small_components(diagonal, 9).sum() == 0


def test_an_enclosed_hole_counts_but_is_not_filled():
    shell = voxels((5, 5, 5), np.s_[1:4, 1:4, 1:4])
    shell[2, 2, 2] = False
    assert remove_small_components(shell, 27).sum() == 26
    assert not remove_small_components(shell, 28).any()
    shell[1, 1, 1] = False  # the hole is open at a corner
    assert not remove_small_components(shell, 26).any()


def test_zero_keeps_all_and_nothing_stays_nothing():
    volume = np.random.default_rng(0).random((6, 7, 8)) > 0.8
    assert np.array_equal(remove_small_components(volume, 0), volume)
    assert not remove_small_components(np.zeros((3, 3, 3), bool), 8).any()


def test_removing_twice_is_removing_once():
    volume = np.random.default_rng(1).random((12, 20, 20)) > 0.93
    once = remove_small_components(volume, 5)
    assert 0 < once.sum() < volume.sum()
    assert np.array_equal(remove_small_components(once, 5), once)


def test_a_score_equal_to_the_threshold_is_negative():
    scores = np.array([[[0.25, 0.250244140625, 0.5]]], np.float16)
    assert segment(scores, 0.25, 0).ravel().tolist() == [False, True, True]
    assert segment(scores, 0.2501, 0).ravel().tolist() == [False, True, True]  # not rounded to a float16 first
    assert segment(scores, 0.2503, 0).ravel().tolist() == [False, False, True]


def test_nothing_scores_far_outside_of_the_mask():
    residual = np.ones((9, 9, 9), np.float16)
    mask = voxels((9, 9, 9), np.s_[:, :4, :])
    scores = anomaly_map(residual, mask, 3)
    assert np.array_equal(scores > 0, mask)


@pytest.mark.parametrize("places", [[(1, 2, 3)], [(0, 0, 0), (4, 5, 6)], [(2, 5, 1), (3, 0, 1)]])
def test_bounding_box_is_the_smallest(places):
    box = bounding_box(voxels((5, 6, 7), *places))
    low, high = np.min(places, axis=0), np.max(places, axis=0) + 1
    assert [(b.start, b.stop) for b in box] == list(zip(low, high, strict=True))
    assert bounding_box(np.zeros((5, 6, 7), bool)) is None


@pytest.mark.parity
def test_equals_the_published_code(published, near):
    threshold = float(published["a_best_thresh_f32"])
    residual = anomaly_scores(difference(published["a_orig"], published["a_reco"], "l1"))
    scores = anomaly_map(residual, eroded_mask(published["a_mask"], 25), 5)
    for scale, suffix in ((1.0, ""), (0.5, "_half")):
        near("thresholding", segment(scores, scale * threshold, 0), published[f"a_thresholded{suffix}"], 0)
        near("component filter", segment(scores, scale * threshold, 8), published[f"a_cc{suffix}"], 0)
    near("thresholding", segment(residual, threshold / 2, 0), published["a_raw_thresholded"], 0)
    near("component filter", segment(residual, threshold / 2, 8), published["a_raw_cc"], 0)
    unit = remove_small_components(published["cc_unit_in"] > 0, 8)
    near("component filter, unit case", unit, published["cc_unit_out"], 0)
