"""Input against reconstruction: hand-worked numbers, and SSIM against MONAI and a plain loop."""

import numpy as np
import pytest
import torch

from cddpm.scoring.metrics import fidelity, lesion_error, ssim_map


def volumes(seed: int = 0, shape: tuple[int, int, int] = (4, 24, 20)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, a blurred and noisy copy, and an off-centre brain mask."""
    random = np.random.default_rng(seed)
    image = np.clip(random.normal(0.5, 0.2, shape), 0, 1)
    s, h, w = np.indices(shape)
    brain = ((h - 11) / 10) ** 2 + ((w - 12) / 7) ** 2 < 1 - 0.1 * s
    return image, 0.7 * image + 0.1 + random.normal(0, 0.05, shape), brain


def test_hand_worked_differences():
    image = np.array([[[0.5, 0.5, 0.25, 9.0]]])
    restored = np.array([[[0.5, 0.25, 0.75, 0.0]]])
    found = fidelity(image, restored, np.array([[[True, True, True, False]]]))
    assert found.l1 == pytest.approx((0 + 0.25 + 0.5) / 3)
    assert found.l2 == pytest.approx((0 + 0.0625 + 0.25) / 3)
    assert found.psnr == pytest.approx(10 * np.log10(1 / found.l2))


def test_equal_images():
    image, _, brain = volumes()
    found = fidelity(image, image, brain)
    assert (found.l1, found.l2, found.psnr) == (0, 0, None)
    assert found.ssim == pytest.approx(1)


def test_a_tenth_of_error_everywhere_is_20_db():
    image, _, brain = volumes()
    found = fidelity(image, image + 0.1, brain)
    assert found.psnr == pytest.approx(20)
    assert (found.l1, found.l2) == (pytest.approx(0.1), pytest.approx(0.01))


def test_ssim_equals_monai():
    from monai.metrics.regression import compute_ssim_and_cs

    x, y, _ = volumes()
    padded = [torch.from_numpy(np.pad(a, ((0, 0), (5, 5), (5, 5))))[:, None].float() for a in (x, y)]
    expected, _ = compute_ssim_and_cs(*padded, spatial_dims=2, kernel_size=(11, 11), kernel_sigma=(1.5, 1.5))
    assert np.abs(ssim_map(x, y) - expected[:, 0].numpy()).max() < 1e-4


def test_ssim_of_one_voxel_written_plainly():
    x, y, _ = volumes(3)
    s, h, w = 1, 9, 17  # its window reaches beyond the border, where everything is 0
    offsets = np.arange(-5, 6)
    weights = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    a, b = (np.pad(v, ((0, 0), (5, 5), (5, 5)))[s, h : h + 11, w : w + 11] for v in (x, y))
    mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
    spread_a, spread_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
    both = (weights * (a - mean_a) * (b - mean_b)).sum()
    expected = (2 * mean_a * mean_b + 1e-4) * (2 * both + 9e-4)
    expected /= (mean_a**2 + mean_b**2 + 1e-4) * (spread_a + spread_b + 9e-4)
    assert ssim_map(x, y)[s, h, w] == pytest.approx(expected, rel=1e-9)


def test_ssim_laws():
    x, y, _ = volumes(1)
    found = ssim_map(x, y)
    assert found.max() <= 1
    np.testing.assert_allclose(ssim_map(y, x), found, atol=1e-12)
    np.testing.assert_allclose(ssim_map(x[:, ::-1], y[:, ::-1]), found[:, ::-1], atol=1e-12)
    np.testing.assert_allclose(ssim_map(x[2:3], y[2:3]), found[2:3], atol=1e-12)  # slices know nothing of each other
    assert ssim_map(x, x + 0.3 * (y - x)).mean() > found.mean()


def test_what_lies_outside_of_the_brain_changes_nothing():
    image, restored, brain = volumes()
    elsewhere = np.random.default_rng(1).random(image.shape) * ~brain
    assert fidelity(image + elsewhere, restored - 3 * elsewhere, brain) == fidelity(image, restored, brain)
    wider = [np.pad(a, ((1, 1), (4, 0), (0, 7))) for a in (image, restored, brain)]
    assert fidelity(*wider) == fidelity(image, restored, brain)


def test_float16_images_are_compared_in_float64():
    image, _, brain = volumes()
    stored = image.astype(np.float16)
    assert fidelity(stored, stored.astype(np.float32) + np.float32(0.25), brain).l1 == pytest.approx(0.25, abs=1e-7)


def test_hand_worked_lesion_error():
    image, restored = np.array([[[1.0, 0.8, 0.5, 0.5, 1.0]]]), np.array([[[0.6, 0.6, 0.5, 0.3, 0.0]]])
    brain = np.array([[[True, True, True, True, False]]])
    lesion = np.array([[[True, True, False, False, True]]])
    found = lesion_error(image, restored, brain, lesion)
    assert (found.lesion, found.tissue) == (pytest.approx(0.3), pytest.approx(0.1))
    assert found.ratio == pytest.approx(3)


def test_undefined_numbers_are_none():
    image, restored, brain = volumes()
    nothing = np.zeros_like(brain)
    assert fidelity(image, restored, nothing) is None
    healthy = lesion_error(image, restored, brain, nothing)
    assert (healthy.lesion, healthy.ratio) == (None, None)
    assert healthy.tissue == pytest.approx(fidelity(image, restored, brain).l1)
    assert lesion_error(image, restored, brain, brain).ratio is None
    assert lesion_error(image, image, brain, nothing | (image > 0.9)).ratio is None  # nothing to divide by


def test_shapes_must_agree():
    image, restored, brain = volumes()
    with pytest.raises(ValueError, match=r"\(4, 24, 20\), \(4, 24, 20\), \(3, 24, 20\); one shape"):
        fidelity(image, restored, brain[1:])
