"""Residual maps and the eroded brain mask, exact quantile mapping, and the distance to the distribution of reconstructions."""

import numpy as np
import pytest

from cddpm.scoring.residual import (
    FLOAT16_MAX,
    SHRINKAGE,
    SMALLEST_DEVIATION,
    anomaly_scores,
    difference,
    eroded_mask,
    erosion_iterations,
    mahalanobis_map,
    matched,
)

IMAGE = np.array([[[0.5, 0.25, 0.0]]], np.float16)
PREDICTED = np.array([[[0.25, 0.75, 0.0]]], np.float32)


def residual_map(image, reconstruction, kind) -> np.ndarray:
    """The residual as it is scored, float16."""
    return anomaly_scores(difference(image, reconstruction, kind))


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


# Histogram matching, against counting voxels one by one


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


# Mahalanobis distance: the K x K way equals inverting the whole covariance of a slice

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
