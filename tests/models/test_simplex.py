"""Simplex noise: the laws of the lattice sum, the fast table against the plain sum, and the reference arrays."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from reference_settings import Arrays, load_arrays, noise_config, noise_shape, radial_power

from cddpm.config import NoiseConfig
from cddpm.models.noise import noise2, octave_field, permutation, simplex_noise

Near = Callable[..., None]

SEEDS = [0, 1, -77, 12345, 9876543210, 2**63 - 1, -(2**63)]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_permutation_holds_every_number_once(seed):
    assert sorted(permutation(seed)) == list(range(256))


def test_noise_vanishes_where_only_one_lattice_point_counts():
    # At a lattice point all others are at least sqrt(2) away, and its own gradient meets the offset 0.
    x = (np.sqrt(3) - 1) / 2
    assert noise2(np.array([0.0, 1 + x]), np.array([0.0, x]), permutation(3)) == pytest.approx(0, abs=1e-12)


def test_noise_repeats_after_256_lattice_steps():
    table = permutation(5)
    step = 256 * (1 + 2 * (np.sqrt(3) - 1) / 2)
    x, y = np.random.default_rng(0).uniform(-3, 3, (2, 200))
    np.testing.assert_allclose(noise2(x + step, y + step, table), noise2(x, y, table), atol=1e-10)


def test_noise_is_continuous():
    table = permutation(7)
    x, y = np.random.default_rng(1).uniform(-9, 9, (2, 2000))
    assert np.abs(noise2(x + 1e-7, y - 1e-7, table) - noise2(x, y, table)).max() < 1e-6


def test_octaves_add_up():
    y, x = np.mgrid[:6, :8]
    table = permutation(9)
    expected = noise2(x / 16, y / 16, table) + 0.5 * noise2(x / 8, y / 8, table)
    np.testing.assert_allclose(octave_field(9, (6, 8), octaves=2, persistence=0.5, frequency=16), expected)


@pytest.mark.parametrize("shape", [(48, 48), (24, 56), (5, 3)])
def test_fast_fields_equal_the_plain_sum(shape):
    config = NoiseConfig()
    fast = simplex_noise(SEEDS, shape, config)
    assert fast.dtype == np.float32
    for seed, field in zip(SEEDS, fast, strict=True):
        plain = octave_field(seed, shape, config.octaves, config.persistence, config.frequency)
        np.testing.assert_allclose(field, plain, rtol=0, atol=1e-6)


def test_fast_fields_obey_the_configuration():
    config = NoiseConfig(octaves=3, persistence=0.5, frequency=20)
    plain = octave_field(4, (30, 30), octaves=3, persistence=0.5, frequency=20)
    np.testing.assert_allclose(simplex_noise([4], (30, 30), config)[0], plain, rtol=0, atol=1e-6)


def test_a_slice_never_depends_on_its_batch():
    seeds = np.random.default_rng(2).integers(-(2**63), 2**63 - 1, 70)
    together = simplex_noise(seeds, (32, 40), NoiseConfig())
    for place in (0, 31, 32, 69):
        alone = simplex_noise(seeds[place : place + 1], (32, 40), NoiseConfig())
        np.testing.assert_array_equal(alone[0], together[place])


def test_no_seeds_give_no_fields():
    assert simplex_noise([], (8, 8), NoiseConfig()).shape == (0, 8, 8)


@pytest.mark.slow
def test_standardised_noise_is_plain_noise_times_a_constant_with_unit_variance():
    seeds = np.random.default_rng(3).integers(0, 2**63 - 1, 2000)
    plain = simplex_noise(seeds, (48, 48), NoiseConfig())
    standard = simplex_noise(seeds, (48, 48), NoiseConfig(standardise=True))
    factor = standard[0, 20, 20] / plain[0, 20, 20]
    np.testing.assert_allclose(standard, plain * factor, rtol=1e-4, atol=1e-5)
    assert np.mean(standard**2) == pytest.approx(1, abs=0.05)


@pytest.fixture
def arrays(reference_dir: Path) -> Arrays:
    return load_arrays(reference_dir, "simplex")


@pytest.mark.slow
@pytest.mark.parity
def test_tables_and_fields_equal_the_reference(arrays: Arrays, near: Near):
    config, shape = noise_config(arrays), noise_shape(arrays)
    fast = simplex_noise(arrays["seeds"], shape, config)
    for number, seed in enumerate(arrays["seeds"].tolist()):
        expected = arrays[f"octaves_{number}"]
        np.testing.assert_array_equal(permutation(seed), arrays[f"perm_{number}"])
        exact = octave_field(seed, shape, config.octaves, config.persistence, config.frequency)
        near("simplex: fields, exact", exact, expected, 1e-12)
        near("simplex: fields, fast generator", fast[number], expected, 1e-6)


@pytest.mark.parity
def test_single_octaves_equal_the_reference(arrays: Arrays, near: Near):
    x, y = arrays["noise2_x"][None, :], arrays["noise2_y"][:, None]
    numbers = [number for number in range(len(arrays["seeds"])) if f"noise2_{number}" in arrays]
    assert numbers
    for number in numbers:
        table = permutation(int(arrays["seeds"][number]))
        near("simplex: one octave", noise2(x, y, table), arrays[f"noise2_{number}"], 1e-12)


@pytest.mark.slow
@pytest.mark.parity
def test_statistics_and_spectrum_equal_the_reference(arrays: Arrays, near: Near):
    fields = simplex_noise(arrays["stat_seeds"], noise_shape(arrays), noise_config(arrays)).astype(np.float64)
    flat = fields.reshape(len(fields), -1)
    found = np.stack([flat.mean(1), flat.std(1), flat.min(1), flat.max(1)], axis=1)
    near("simplex: mean, std, min, max of every seed", found, arrays["stat_mean_std_min_max"], 1e-6)
    radial = radial_power(fields, len(arrays["radial_power_mean"]))
    near("simplex: radial power, mean over seeds", radial.mean(0), arrays["radial_power_mean"], 1e-6)
    near("simplex: radial power, spread over seeds", radial.std(0), arrays["radial_power_std"], 1e-6)


@pytest.mark.parity
def test_the_published_batch_is_one_field_of_the_second_drawn_seed(arrays: Arrays, near: Near):
    drawn = np.random.RandomState(int(arrays["gen_noise_npseed"])).randint(-(10**10), 10**10, 2)
    np.testing.assert_array_equal(drawn, arrays["gen_noise_drawn_seeds"])
    config, shape = noise_config(arrays), arrays["gen_noise_f16"].shape[2:]
    exact = octave_field(int(drawn[1]), shape, config.octaves, config.persistence, config.frequency)
    field = exact.astype(np.float32).astype(np.float16)  # rounded twice
    fast = simplex_noise(drawn[1:], shape, config)[0].astype(np.float16)
    for published in arrays["gen_noise_f16"][:, 0]:
        near("simplex: batch of one float16 field", field, published, 0)
        near("simplex: the same, fast generator", fast, published, 2**-10)  # another rounding here and there
