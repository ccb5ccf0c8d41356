"""Residual maps and the eroded brain mask."""

import numpy as np
import pytest

from cddpm.scoring.residual import FLOAT16_MAX, eroded_mask, erosion_iterations, residual_map

IMAGE = np.array([[[0.5, 0.25, 0.0]]], np.float16)
PREDICTED = np.array([[[0.25, 0.75, 0.0]]], np.float32)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("l1", [0.25, 0.5, 0.0]),
        ("l2", [0.0625, 0.25, 0.0]),
        ("positive", [0.25, 0.0, 0.0]),
        ("negative", [0.0, 0.5, 0.0]),
    ],
)
def test_hand_worked_residuals(kind, expected):
    residual = residual_map(IMAGE, PREDICTED, kind)
    assert residual.dtype == np.float16
    assert residual.ravel().tolist() == expected


def test_positive_and_negative_parts_make_l1():
    random = np.random.default_rng(0)
    image, predicted = random.random((2, 3, 4)), random.random((2, 3, 4)).astype(np.float32)
    parts = [residual_map(image, predicted, kind) for kind in ("positive", "negative")]
    assert np.array_equal(parts[0] + parts[1], residual_map(image, predicted, "l1"))
    assert not np.any(parts[0] * parts[1])


def test_a_perfect_reconstruction_leaves_nothing_and_the_input_unchanged():
    image = IMAGE.copy()
    for kind in ("l1", "l2", "positive", "negative"):
        assert not residual_map(image, image.astype(np.float32), kind).any()
    assert np.array_equal(image, IMAGE)


def test_values_beyond_float16_stay_finite():
    assert residual_map(IMAGE, PREDICTED + 1e6, "l2").max() == FLOAT16_MAX


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="'ssim'; allowed are 'l1', 'l2'"):
        residual_map(IMAGE, PREDICTED, "ssim")


@pytest.mark.parametrize(("columns", "divisor", "iterations"), [(96, 25, 3), (103, 25, 4), (24, 25, 0), (96, None, 0)])
def test_erosion_follows_the_size_of_axis_1(columns, divisor, iterations):
    assert erosion_iterations((5, 77, columns), divisor) == iterations


def test_erosion_of_a_square_in_the_plane_only():
    mask = np.zeros((3, 9, 50), np.uint8)
    mask[1, 2:7, 10:15] = 1
    eroded = eroded_mask(mask, 25)  # two steps of the 4-neighbourhood leave the centre of 5x5
    assert np.argwhere(eroded).tolist() == [[1, 4, 12]]


def test_outside_of_the_volume_counts_as_background():
    eroded = eroded_mask(np.ones((2, 5, 25), np.uint8), 25)
    assert not eroded[:, [0, -1]].any()
    assert not eroded[:, :, [0, -1]].any()
    assert eroded[:, 1:-1, 1:-1].all()  # but not along the body axis


def test_no_iterations_keep_the_mask():
    mask = np.random.default_rng(0).integers(0, 2, (3, 8, 8)).astype(np.uint8)
    assert np.array_equal(eroded_mask(mask, None), mask > 0)
    assert np.array_equal(eroded_mask(mask, 9), mask > 0)


@pytest.mark.parity
def test_equals_the_published_code(published, rounding, near):
    eroded = eroded_mask(published["a_mask"], 25)
    near("erosion", eroded, published["a_eroded_mask"], 0)
    near("erosion, unit case", eroded_mask(published["erode_unit_mask"], 25), published["erode_unit_out"], 0)
    residual = residual_map(published["a_orig"], published["a_reco"], "l1")
    near(
        "eroded residual, sum",
        (residual * eroded).sum(dtype=np.float64),
        published["a_eroded_diff_sum"],
        max(1e-6, rounding),
    )
