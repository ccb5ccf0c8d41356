"""Distances between surfaces, by hand and against every pair of surface voxels."""

import numpy as np
import pytest

from cddpm.scoring.metrics import hausdorff_mm, hd95_mm

pytestmark = pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")

SIZES_MM = (3.0, 2.0, 2.5)


def surface(mask: np.ndarray) -> np.ndarray:
    """Voxels (N, 3) with a face neighbour outside of the mask; beyond the volume is outside."""
    padded, found = np.pad(mask, 1), []
    for s, h, w in np.argwhere(padded):
        near = [padded[s - 1, h, w], padded[s + 1, h, w], padded[s, h - 1, w]]
        near += [padded[s, h + 1, w], padded[s, h, w - 1], padded[s, h, w + 1]]
        if not all(near):
            found.append((s, h, w))
    return np.array(found)


def plain(prediction: np.ndarray, truth: np.ndarray, percent: float) -> float:
    one, other = surface(prediction) * SIZES_MM, surface(truth) * SIZES_MM
    distances = np.linalg.norm(one[:, None] - other[None], axis=2)
    return max(np.percentile(distances.min(1), percent), np.percentile(distances.min(0), percent))


def blobs(seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    grid = np.indices((8, 11, 9))
    centre = random.integers(0, 8, 3)
    near = sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) < random.uniform(6, 20)
    return near | (random.random(near.shape) > 0.99)


@pytest.mark.parametrize("seed", range(5))
def test_equals_all_pairs_of_surface_voxels(seed):
    prediction, truth = blobs(seed), blobs(seed + 50)
    assert hausdorff_mm(prediction, truth, SIZES_MM) == pytest.approx(plain(prediction, truth, 100), rel=1e-6)
    assert hd95_mm(prediction, truth, SIZES_MM) == pytest.approx(plain(prediction, truth, 95), rel=1e-6)


def test_two_voxels_are_as_far_apart_as_their_sizes_say():
    one, other = np.zeros((5, 6, 7), bool), np.zeros((5, 6, 7), bool)
    one[0, 0, 0] = other[1, 2, 6] = True  # 1 x 3 mm, 2 x 2 mm, 6 x 2.5 mm
    assert hausdorff_mm(one, other, SIZES_MM) == pytest.approx((9 + 16 + 225) ** 0.5, rel=1e-6)
    assert hd95_mm(one, other, SIZES_MM) == pytest.approx((9 + 16 + 225) ** 0.5, rel=1e-6)


def test_one_stray_voxel_in_a_hundred_moves_the_maximum_only():
    truth = np.zeros((1, 10, 40), bool)
    truth[0, :, :10] = True
    prediction = truth.copy()
    prediction[0, 0, 39] = True  # 30 voxels off
    assert hausdorff_mm(prediction, truth, (1, 1, 1)) == 30
    assert hd95_mm(prediction, truth, (1, 1, 1)) == 0


def test_laws_of_a_distance():
    one, other = blobs(1), blobs(2)
    assert hd95_mm(one, one, SIZES_MM) == 0
    assert hd95_mm(one, other, SIZES_MM) == hd95_mm(other, one, SIZES_MM) <= hausdorff_mm(one, other, SIZES_MM)
    doubled = [2 * size for size in SIZES_MM]
    assert hd95_mm(one, other, doubled) == pytest.approx(2 * hd95_mm(one, other, SIZES_MM))
    moved = [np.roll(np.pad(mask, 6), (2, -3, 1), (0, 1, 2)) for mask in (one, other)]
    assert hd95_mm(*moved, SIZES_MM) == hd95_mm(one, other, SIZES_MM)


def test_there_is_no_distance_to_nothing():
    nothing, something = np.zeros((8, 11, 9), bool), blobs(0)
    for pair in ((nothing, something), (something, nothing), (nothing, nothing)):
        assert hd95_mm(*pair, SIZES_MM) is None
        assert hausdorff_mm(*pair, SIZES_MM) is None


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"prediction \(2, 2, 2\) and truth \(2, 2, 3\)"):
        hd95_mm(np.ones((2, 2, 2), bool), np.ones((2, 2, 3), bool), SIZES_MM)


@pytest.mark.slow
@pytest.mark.parity
def test_equals_the_published_code(published):
    found = hausdorff_mm(published["a_cc"] > 0, published["a_seg"] > 0, (1, 1, 1))
    error = abs(found - float(published["a_hausdorff"])) / float(published["a_hausdorff"])
    print(f"Hausdorff distance: relative error {error:.1e}")
    assert error < 1e-6
