"""The fast simplex generator on seeds of its own has the published distribution: mean, spread and radial power spectrum."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cddpm.config import NoiseConfig
from cddpm.models.noise import slice_seed
from cddpm.models.simplex import simplex_noise

pytestmark = pytest.mark.parity
SEEDS, SIZE = 200, 96
STANDARD_ERRORS = 3.0


@pytest.fixture(scope="module")
def arrays(reference_dir: Path) -> dict[str, np.ndarray]:
    return dict(np.load(reference_dir / "simplex.npz"))


def own_fields(persistence: float = 0.8) -> np.ndarray:
    """(200, 96, 96) fields of seeds as training draws them."""
    seeds = [slice_seed(0, "parity", i) for i in range(SEEDS)]
    return simplex_noise(seeds, (SIZE, SIZE), NoiseConfig(persistence=persistence)).astype(np.float64)


def radial_power(fields: np.ndarray) -> np.ndarray:
    """(B, 49): mean over rings of whole radius of |FFT(field - mean)|^2 / pixels."""
    power = np.abs(np.fft.fft2(fields - fields.mean((1, 2), keepdims=True))) ** 2 / SIZE**2
    frequency = np.fft.fftfreq(SIZE, 1 / SIZE)
    ring = np.rint(np.hypot(*np.meshgrid(frequency, frequency))).astype(int)
    return np.stack([power[:, ring == radius].mean(1) for radius in range(SIZE // 2 + 1)], axis=1)


def z_scores(ours: np.ndarray, mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Differences of means in units of their standard error, both over 200 seeds."""
    return np.asarray((ours.mean(0) - mean) / np.sqrt((ours.var(0) + spread**2) / SEEDS))


def scores(fields: np.ndarray, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    published = arrays["stat_mean_std_min_max"]
    flat = fields.reshape(SEEDS, -1)
    found = {"mean": flat.mean(1), "std": flat.std(1)}
    result = {
        name: z_scores(v, published[:, i].mean(), published[:, i].std()) for i, (name, v) in enumerate(found.items())
    }
    power = radial_power(fields)[:, 1:]  # ring 0 is the mean, which was taken away
    return result | {"power": z_scores(power, arrays["radial_power_mean"][1:], arrays["radial_power_std"][1:])}


def test_own_seeds_have_the_published_distribution(arrays: dict[str, np.ndarray], near: Callable[..., None]) -> None:
    assert not set(arrays["stat_seeds"].tolist()) & {slice_seed(0, "parity", i) for i in range(SEEDS)}
    for name, z in scores(own_fields(), arrays).items():
        largest = float(np.abs(z).max())
        print(f"simplex in distribution, {name}: largest z {largest:.2f} of {np.size(z)}")
        near(f"simplex in distribution, {name}: |z|", largest, 0.0, STANDARD_ERRORS, floor=1.0)


def test_another_spectrum_is_noticed(arrays: dict[str, np.ndarray]) -> None:
    assert np.abs(scores(own_fields(persistence=0.75), arrays)["power"]).max() > 2 * STANDARD_ERRORS
