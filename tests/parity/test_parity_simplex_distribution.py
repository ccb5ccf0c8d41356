"""The fast simplex generator on seeds of its own has the published distribution: mean, spread and radial power spectrum."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from reference_settings import Arrays, load_arrays, noise_config, noise_shape, radial_power
from scipy import stats

from cddpm.models.noise import simplex_noise
from cddpm.seeds import seed_of

pytestmark = pytest.mark.parity
FALSE_ALARM = 1e-4
"""How often equal distributions may be called different, over all numbers compared."""


@pytest.fixture(scope="module")
def arrays(reference_dir: Path) -> Arrays:
    return load_arrays(reference_dir, "simplex")


def own_seeds(arrays: Arrays) -> list[int]:
    """As many seeds as the arrays have, as training draws them."""
    return [seed_of(0, "parity", i) for i in range(len(arrays["stat_seeds"]))]


def own_fields(arrays: Arrays, persistence: float = 1.0) -> np.ndarray:
    """(N, H, W) fields of own seeds, with the arrays' settings; ``persistence`` times theirs."""
    config = noise_config(arrays)
    config = config.model_copy(update={"persistence": persistence * config.persistence})
    return simplex_noise(own_seeds(arrays), noise_shape(arrays), config).astype(np.float64)


def z_scores(ours: np.ndarray, mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Differences of means in units of their standard error, both over as many seeds."""
    return np.asarray((ours.mean(0) - mean) / np.sqrt((ours.var(0) + spread**2) / len(ours)))


def scores(fields: np.ndarray, arrays: Arrays) -> dict[str, np.ndarray]:
    published = arrays["stat_mean_std_min_max"]
    flat = fields.reshape(len(fields), -1)
    found = {"mean": flat.mean(1), "std": flat.std(1)}
    result = {
        name: z_scores(v, published[:, i].mean(), published[:, i].std()) for i, (name, v) in enumerate(found.items())
    }
    # ring 0 is the mean, which was taken away
    power = radial_power(fields, len(arrays["radial_power_mean"]))[:, 1:]
    return result | {"power": z_scores(power, arrays["radial_power_mean"][1:], arrays["radial_power_std"][1:])}


def allowed(found: dict[str, np.ndarray]) -> float:
    """The |z| that the largest of all these exceeds by chance once in 1 / ``FALSE_ALARM`` times."""
    return float(stats.norm.isf(FALSE_ALARM / 2 / sum(np.size(z) for z in found.values())))


@pytest.mark.slow
def test_own_seeds_have_the_published_distribution(arrays: Arrays, near: Callable[..., None]) -> None:
    assert not set(arrays["stat_seeds"].tolist()) & set(own_seeds(arrays))
    found = scores(own_fields(arrays), arrays)
    for name, z in found.items():
        largest = float(np.abs(z).max())
        print(f"simplex in distribution, {name}: largest z {largest:.2f} of {np.size(z)}")
        near(f"simplex in distribution, {name}: |z|", largest, 0.0, allowed(found), floor=1.0)


@pytest.mark.slow
def test_another_spectrum_is_noticed(arrays: Arrays) -> None:
    found = scores(own_fields(arrays, persistence=0.9), arrays)
    assert np.abs(found["power"]).max() > allowed(found)
