"""Augmentation: seeded per slice, laws of each change, and parity with arrays of the published pipeline."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from own_reference.volumes import augmentations
from reference_settings import Arrays, load_arrays
from scipy import ndimage
from torch.nn import functional

from cddpm.config import AugmentationConfig
from cddpm.data.augment import (
    along_axis,
    apply_bias,
    apply_gamma,
    augment,
    blur_matrices,
    gamma_exponents,
    ghost_matrices,
    uniform_draws,
)

ON = AugmentationConfig(enabled=True)
EVERYTHING = AugmentationConfig(enabled=True, bias_probability=0.25, blur_probability=0.25, ghosting_probability=0.5)


def test_gamma_worked_by_hand() -> None:
    x = torch.tensor([[-0.25, 0.0, 0.25, 1.0], [-0.25, 0.0, 0.25, 1.0]])
    y = apply_gamma(x, torch.tensor([0.5, 2.0]))
    torch.testing.assert_close(y, torch.tensor([[-0.5, 0.0, 0.5, 1.0], [-0.0625, 0.0, 0.0625, 1.0]]))


def test_off_changes_nothing() -> None:
    x = torch.rand(3, 1, 8, 8)
    assert augment(x, torch.arange(3), AugmentationConfig()) is x


def test_slices_that_are_not_chosen_keep_every_bit() -> None:
    x, seeds = torch.rand(64, 1, 8, 8) * 1.2 - 0.1, torch.arange(64)
    y = augment(x, seeds, ON)
    same = (y == x).flatten(1).all(1)
    assert torch.equal(same, gamma_exponents(uniform_draws(seeds), ON) == 1)
    assert 16 < same.sum() < 48


def test_a_slice_does_not_depend_on_its_batch() -> None:
    x, seeds = torch.rand(8, 1, 8, 8), torch.arange(8) * 2**40 - 3
    for config in (ON, EVERYTHING):
        y = augment(x, seeds, config)
        single = torch.cat([augment(x[i : i + 1], seeds[i : i + 1], config) for i in range(8)])
        torch.testing.assert_close(y, single, rtol=0, atol=0 if config is ON else 1e-6)


def test_all_bits_of_a_seed_count() -> None:
    always = AugmentationConfig(enabled=True, gamma_probability=1.0)
    assert len(gamma_exponents(uniform_draws(torch.tensor([1, 1 + 2**32, 1 + 2**62, -1])), always).unique()) == 4


def test_exponents_follow_the_configuration() -> None:
    config = AugmentationConfig(enabled=True, gamma_probability=0.25, gamma_log_range=0.6)
    logs = gamma_exponents(uniform_draws(torch.arange(4000)), config).log()
    changed = logs[logs != 0]
    assert len(changed) / 4000 == pytest.approx(0.25, abs=0.03)
    assert changed.abs().max() <= 0.6
    assert changed.mean() == pytest.approx(0, abs=0.04)
    assert changed.std() == pytest.approx(0.6 / 3**0.5, rel=0.05)


def test_background_stays_zero() -> None:
    y = augment(torch.zeros(4, 1, 2, 2), torch.arange(4), AugmentationConfig(enabled=True, gamma_probability=1.0))
    assert not y.any()


@pytest.mark.parametrize("seeds", [torch.arange(2), torch.rand(3), torch.zeros(3, 1, dtype=torch.int64)])
def test_other_seeds_are_refused(seeds: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"\(3,\) int64 is needed"):
        augment(torch.rand(3, 1, 4, 4), seeds, ON)


def test_changing_one_probability_leaves_the_other_changes_as_they_were() -> None:
    seeds, x = torch.arange(64), torch.rand(64, 1, 8, 8)
    plain, all_on = augment(x, seeds, ON), augment(x, seeds, EVERYTHING)
    other = (all_on != plain).flatten(1).any(1)
    assert torch.equal(gamma_exponents(uniform_draws(seeds), ON), gamma_exponents(uniform_draws(seeds), EVERYTHING))
    assert 20 < other.sum() < 60  # 1 - 0.75 * 0.75 * 0.5 = 72 %
    assert torch.equal(all_on[~other], plain[~other])


def test_bias_field_worked_by_hand() -> None:
    # On 3 x 2 pixels the coordinates are -1, 0, 1 and -1, 1; order 1 counts 1, y, x.
    x = torch.ones(1, 3, 2, dtype=torch.float64)
    found = apply_bias(x, np.array([[0.5, 0.25, 1.0]]), order=1)
    logs = torch.tensor([[-0.75, -0.25], [0.25, 0.75], [1.25, 1.75]], dtype=torch.float64)
    torch.testing.assert_close(found[0].log(), logs)


def test_bias_field_of_zeros_changes_nothing_and_wrong_numbers_are_refused() -> None:
    x = torch.rand(2, 5, 6, 4)
    assert torch.equal(apply_bias(x, np.zeros((2, 20))), x)
    with pytest.raises(ValueError, match=r"\(2, 10\); \(2, 20\) is needed"):
        apply_bias(x, np.zeros((2, 10)))


@pytest.mark.parametrize("shape", [(24, 20), (12, 10, 9), (3, 5)])
def test_blur_equals_scipy_along_each_axis(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).random((3, *shape))
    stds = np.array([[0.0, 0.6, 1.7], [0.3, 2.4, 0.0], [1.0, 1.0, 1.0]])[:, : len(shape)]
    found = torch.from_numpy(x)
    for axis, size in enumerate(shape):
        found = along_axis(found, axis, blur_matrices(size, stds[:, axis]))
    for ours, image, std in zip(found.numpy(), x, stds, strict=True):
        np.testing.assert_allclose(ours, ndimage.gaussian_filter(image, std), atol=1e-12)


def test_blur_keeps_constants_and_the_sum() -> None:
    matrices = blur_matrices(17, np.array([0.0, 0.5, 9.0]))
    np.testing.assert_allclose(matrices.sum(1), 1)
    np.testing.assert_allclose(matrices.sum(2), 1)
    np.testing.assert_array_equal(matrices[0], np.eye(17))


@pytest.mark.parametrize("shape", [(16, 21), (12, 10, 9)])
def test_ghosting_equals_the_filter_in_k_space(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(1).random((2, *shape))
    numbers, intensities = np.array([4, 7]), np.array([0.5, 1.0])
    for axis, size in enumerate(shape):
        found = along_axis(torch.from_numpy(x), axis, ghost_matrices(size, numbers, intensities, 0.2)).numpy()
        for ours, image, number, intensity in zip(found, x, numbers, intensities, strict=True):
            spectrum = np.moveaxis(np.fft.fftshift(np.fft.fftn(image)), axis, 0)
            half, middle, kept = round(0.2 * size) // 2, size // 2, spectrum.copy()
            spectrum[::number] *= 1 - intensity
            spectrum[middle - half : middle + half] = kept[middle - half : middle + half]
            expected = np.fft.ifftn(np.fft.ifftshift(np.moveaxis(spectrum, 0, axis))).real
            np.testing.assert_allclose(ours, expected, atol=1e-12)


def test_no_intensity_no_ghosts() -> None:
    np.testing.assert_allclose(ghost_matrices(12, np.array([5]), np.array([0.0]), 0.02)[0], np.eye(12), atol=1e-15)


def test_random_changes_follow_the_configuration() -> None:
    x, seeds = torch.rand(400, 1, 16, 16), torch.arange(400)
    for name, probability in (("bias", 0.25), ("blur", 0.25), ("ghosting", 0.5)):
        config = AugmentationConfig(enabled=True, gamma_probability=0.0, **{f"{name}_probability": probability})
        changed = (augment(x, seeds, config) != x).flatten(1).any(1).float().mean()
        assert changed == pytest.approx(probability, abs=0.08), name


def test_blur_is_in_millimetres() -> None:
    config = AugmentationConfig(enabled=True, gamma_probability=0.0, blur_probability=1.0)
    x, seeds = torch.rand(20, 1, 24, 24), torch.arange(20)
    wider = config.model_copy(update={"blur_std_mm": 4.0})
    assert torch.equal(augment(x, seeds, config, 1.0), augment(x, seeds, wider, 2.0))
    assert augment(x, seeds, config, 1.0).var() < augment(x, seeds, config, 2.0).var() < x.var()


def test_ghosts_run_along_either_axis_and_half_of_them_along_each() -> None:
    config = AugmentationConfig(enabled=True, gamma_probability=0.0, ghosting_probability=1.0)
    x = torch.zeros(100, 1, 24, 24)
    x[:, :, 6, 9] = 1  # a point: its ghosts lie in its row or in its column
    y = augment(x, torch.arange(100), config)[:, 0].abs() > 1e-4
    along_h, along_w = y[:, :6].any((1, 2)), y[:, :, :9].any((1, 2))
    assert torch.equal(along_h, ~along_w)
    assert 30 < along_h.sum() < 70


def test_everything_takes_20_times_as_long_as_one_turn_at_most() -> None:
    """What one turn of every slice takes, of the same batch on the same computer; about six times are usual."""
    x, seeds, still = torch.rand(32, 1, 48, 48), torch.arange(32), torch.eye(2, 3).repeat(32, 1, 1)

    def turned() -> None:
        grid = functional.affine_grid(still, list(x.shape), align_corners=False)
        functional.grid_sample(x, grid, align_corners=False)

    turn = min(seconds(turned) for _ in range(10))
    assert min(seconds(lambda: augment(x, seeds, EVERYTHING, 2.0)) for _ in range(10)) < 20 * turn


def seconds(function: Callable[[], object]) -> float:
    """CPU time: other processes on the machine count for nothing."""
    start = time.process_time()
    function()
    return time.process_time() - start


@pytest.fixture(scope="module")
def published(reference_dir: Path) -> Arrays:
    return load_arrays(reference_dir, "augment_ops")


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "what"),
    [("gamma", "gamma"), ("bias", "bias field"), ("blur", "blur"), ("ghost", "ghosting")],
)
def test_parity(published: Arrays, near: Callable[..., None], name: str, what: str) -> None:
    changed = augmentations(published, torch.float32)[f"{name}_out"]
    near(f"augmentation: {what}", changed, published[f"{name}_out"], 1e-5)
