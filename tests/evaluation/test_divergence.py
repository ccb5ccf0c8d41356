"""Divergences of histograms against numbers worked by hand."""

from math import log

import numpy as np
import pytest

from cddpm.evaluation.shift import BINS, divergences


def values(seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).beta(2, 5, 400).astype(np.float32) + np.float32(shift)


def test_two_bins_by_hand() -> None:
    """Counts p = (3, 1), q = (1, 3); with half a voxel each (3.5, 1.5) / 5 and (1.5, 3.5) / 5."""
    image, reconstruction = np.array([0.1, 0.2, 0.3, 0.9]), np.array([0.1, 0.7, 0.8, 0.9])
    found = divergences(image, reconstruction, bins=2)
    kl = 0.7 * log(0.7 / 0.3) + 0.3 * log(0.3 / 0.7)
    assert found["kl_image_reconstruction"] == pytest.approx(kl)
    assert found["kl_reconstruction_image"] == pytest.approx(kl)  # mirrored counts
    assert found["jensen_shannon"] == pytest.approx(0.75 * log(0.75 / 0.5) + 0.25 * log(0.25 / 0.5))
    assert found["wasserstein"] == pytest.approx((0 + 0.5 + 0.5 + 0) / 4)  # sorted voxels in pairs


def test_both_directions_differ_and_empty_bins_leave_them_finite() -> None:
    """Counts (4, 0) and (2, 2): smoothed (4.5, 0.5) / 5 = (0.9, 0.1) and (0.5, 0.5)."""
    found = divergences(np.full(4, 0.2), np.array([0.2, 0.2, 0.8, 0.8]), bins=2)
    assert found["kl_image_reconstruction"] == pytest.approx(0.9 * log(0.9 / 0.5) + 0.1 * log(0.1 / 0.5))
    assert found["kl_reconstruction_image"] == pytest.approx(0.5 * log(0.5 / 0.9) + 0.5 * log(0.5 / 0.1))


def test_equal_voxels_in_any_order_are_no_distance_apart() -> None:
    image = values(0)
    found = divergences(image.reshape(20, 20), np.random.default_rng(1).permutation(image))
    assert all(value == pytest.approx(0, abs=1e-12) for value in found.values())


def test_histograms_without_overlap_are_ln_2_apart() -> None:
    found = divergences(np.full(10, 0.1), np.full(30, 0.9))
    assert found["jensen_shannon"] == pytest.approx(log(2))
    assert found["wasserstein"] == pytest.approx(0.8)


def test_exchanging_both_exchanges_the_directions() -> None:
    one, other = divergences(values(0), values(1, 0.2)), divergences(values(1, 0.2), values(0))
    assert one["kl_image_reconstruction"] == pytest.approx(other["kl_reconstruction_image"])
    assert one["kl_image_reconstruction"] != pytest.approx(one["kl_reconstruction_image"])
    assert (one["jensen_shannon"], one["wasserstein"]) == pytest.approx((other["jensen_shannon"], other["wasserstein"]))


def test_a_shift_moves_the_wasserstein_distance_by_as_much_and_all_grow_with_it() -> None:
    small, large = (divergences(values(0), values(0, shift)) for shift in (0.05, 0.2))
    assert (small["wasserstein"], large["wasserstein"]) == pytest.approx((0.05, 0.2), rel=1e-5)
    assert all(small[name] < large[name] for name in small)


def test_overshoot_counts_in_the_outermost_bins() -> None:
    found = divergences(np.array([-0.3, 1.4]), np.array([0.0, 1.0]))
    assert found["jensen_shannon"] == found["kl_image_reconstruction"] == 0
    assert found["wasserstein"] == pytest.approx(0.35)
    assert BINS == 100


@pytest.mark.parametrize("wrong", [np.array([]), np.array([0.1, np.nan])])
def test_no_voxel_and_no_number_are_refused(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"reconstruction: \d voxels, [01] of them finite"):
        divergences(values(0), wrong)
