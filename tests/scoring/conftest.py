"""A small synthetic cohort with reconstructions, and the published code's post-processing arrays."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from reference_settings import Arrays, load_arrays, turned

from cddpm.reconstruct import part, reconstruction

SHAPE = (10, 30, 26)
LEVELS, SEEDS = (250, 500), (0, 7)


@dataclass(frozen=True)
class Record:
    id: str
    dataset: str


class BallStore:
    """Balls of brain with a bright ball of lesion in volumes of 'A' and 'B'; none in 'IXI'."""

    def __init__(self) -> None:
        names = ["A/0", "A/1", "A/2", "B/0", "B/1", "IXI/0", "IXI/1"]
        self.volumes = [Record(name, name.split("/")[0]) for name in names]
        random = np.random.default_rng(5)
        self._brain = ball((5, 14, 12), 11)
        self._images, self._lesions = [], []
        for record in self.volumes:
            centre = np.array((5, 14, 12)) + random.integers(-3, 4, 3)
            lesion = ball(centre, 2.5) & self._brain if record.dataset != "IXI" else np.zeros(SHAPE, bool)
            image = self._brain * (0.4 + 0.05 * random.normal(size=SHAPE)) + 0.25 * lesion
            self._images.append(image.astype(np.float16))
            self._lesions.append(lesion.astype(np.uint8))

    def image(self, v: int) -> np.ndarray:
        return self._images[v]

    def mask(self, v: int) -> np.ndarray:
        return self._brain.astype(np.uint8)

    def segmentation(self, v: int) -> np.ndarray:
        return self._lesions[v]

    def ignored(self, v: int) -> np.ndarray:
        return np.empty(0, np.int64)


def ball(centre, radius: float) -> np.ndarray:
    """True within ``radius`` voxels of ``centre``; (S, H, W)."""
    grid = np.indices(SHAPE)
    return sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) <= radius**2


@pytest.fixture(scope="session")
def store() -> BallStore:
    return BallStore()


@pytest.fixture(scope="session")
def predictions(store) -> dict[str, dict]:
    """Per volume the predicted x0 by (branch, level, seed)."""
    random = np.random.default_rng(6)
    result = {}
    for v, record in enumerate(store.volumes):
        smooth = store.mask(v) * np.float32(0.4)
        arrays = {}
        for level in LEVELS:
            for seed in SEEDS:
                c = smooth + (0.02 * random.normal(size=SHAPE)).astype(np.float32)
                arrays["c", level, seed] = c
                arrays["u", level, seed] = c + (0.03 * random.normal(size=SHAPE)).astype(np.float32)
        result[record.id] = arrays
    return result


@pytest.fixture(scope="session")
def reconstructions(store, predictions, tmp_path_factory) -> reconstruction.Reconstruction:
    path: Path = tmp_path_factory.mktemp("reconstruction") / "cache"
    for volume, arrays in predictions.items():
        part.write_part(reconstruction.parts_directory(path), volume, arrays)
    reconstruction.finish(path, list(predictions), "cache", {"volumes": list(predictions)})
    return reconstruction.Reconstruction.open(path)


@pytest.fixture(scope="session")
def published(reference_dir) -> Arrays:
    """Arrays of the published code's post-processing; volumes (X, Y, Z) turned into (S, H, W)."""
    arrays = load_arrays(reference_dir, "postprocess")
    return {name: turned(array) if array.ndim == 3 else array for name, array in arrays.items()}


@pytest.fixture(scope="session")
def rounding(published) -> float:
    """What float16 changes in the residuals: nothing as long as it holds them, as it does multiples of 1/4096 below 0.5."""
    residual = np.abs(published["a_orig"] - published["a_reco"])
    return 0.0 if np.array_equal(residual.astype(np.float16), residual) else 2**-10
