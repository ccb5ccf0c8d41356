"""Pyramid noise: standard normal at every pixel, coarser than white noise, decided by its seed alone."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cddpm.models.noise import coarse_shapes, enlarged, pyramid_noise
from cddpm.seeds import generator

SEEDS = np.arange(4000) * 977 - 5


def radial_power(fields: np.ndarray) -> np.ndarray:
    """Mean power of ``fields`` (B, H, H) by whole radial frequency 1 .. H / 2 - 1."""
    size = fields.shape[-1]
    power = (np.abs(np.fft.fft2(fields)) ** 2).mean(0) / size**2
    frequency = np.fft.fftfreq(size, 1 / size)
    radius = np.hypot(frequency[:, None], frequency).round().astype(int)
    return np.array([power[radius == r].mean() for r in range(1, size // 2)])


def test_scales_are_halved_down_to_one_pixel():
    assert list(coarse_shapes((96, 96))) == [(48, 48), (24, 24), (12, 12), (6, 6), (3, 3), (1, 1)]
    assert list(coarse_shapes((5, 2))) == [(2, 1), (1, 1)]
    assert list(coarse_shapes((1, 1))) == []


@pytest.mark.parametrize("shape", [(4, 6), (7, 5), (1, 9), (3, 4)])
def test_enlarging_is_bilinear_between_pixel_centres(shape):
    coarse = np.random.default_rng(0).standard_normal((3, 4), dtype=np.float32)
    expected = F.interpolate(torch.from_numpy(coarse)[None, None], shape, mode="bilinear")[0, 0]
    np.testing.assert_allclose(enlarged(coarse, shape), expected, atol=1e-6)


def test_a_field_by_hand():
    draws = generator(7)
    white = draws.standard_normal((2, 2), dtype=np.float32)
    offset = draws.standard_normal((1, 1), dtype=np.float32)
    expected = (white + 0.5 * offset) / np.sqrt(1.25)
    np.testing.assert_allclose(pyramid_noise(np.array([7]), (2, 2), 0.5)[0], expected, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(16, 16), (12, 20)])
def test_every_pixel_is_standard_normal(shape):
    fields = pyramid_noise(SEEDS, shape, 0.8).astype(np.float64)
    count = len(SEEDS)
    # The largest of a few hundred standard errors stays below 5.
    assert np.abs(fields.mean(0)).max() < 5 / np.sqrt(count)
    assert np.abs(fields.std(0) - 1).max() < 5 / np.sqrt(2 * count)
    assert np.abs((fields**4).mean() - 3) < 0.1
    assert fields.mean() == pytest.approx(0, abs=0.03)
    assert np.sqrt((fields**2).mean()) == pytest.approx(1, abs=0.01)


def test_the_spectrum_is_coarser_than_that_of_white_noise_and_the_more_so_with_less_discount():
    white = radial_power(np.random.default_rng(0).standard_normal((300, 32, 32)))
    light, heavy = (radial_power(pyramid_noise(SEEDS[:300], (32, 32), discount)) for discount in (0.4, 0.9))
    assert white == pytest.approx(1, abs=0.2)
    for power in (light, heavy):
        assert power[0] > 1.2 * white[0]
        assert power[-1] < white[-1]
    assert heavy[0] > 5 * light[0]
    assert np.diff(heavy[:6]).max() < 0


def test_a_vanishing_discount_is_white_noise():
    fields = pyramid_noise(SEEDS[:3], (16, 16), 1e-6)
    white = np.stack([generator(seed).standard_normal((16, 16), dtype=np.float32) for seed in SEEDS[:3]])
    np.testing.assert_allclose(fields, white, atol=1e-4)


@pytest.mark.slow
def test_fields_of_different_seeds_are_uncorrelated():
    fields = pyramid_noise(SEEDS, (8, 8), 0.8).astype(np.float64).reshape(len(SEEDS), -1)
    products = (fields[:-1] * fields[1:]).mean(1)
    assert abs(products.mean()) < 5 * products.std() / np.sqrt(len(products))
