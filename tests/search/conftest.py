"""Fixtures of the search tests: validation reconstructions of the tiny store, drawn instead of predicted."""

from pathlib import Path

import numpy as np
import pytest
from tiny_store import store_path
from tiny_training import tiny_config

from cddpm.config import ExperimentConfig
from cddpm.data.store import SliceStore
from cddpm.reconstruct import part, reconstruction
from cddpm.reconstruct.cohort import Cohort
from cddpm.scoring.score import Scorer

__all__ = ["store_path"]


def draw_cache(path: Path, store: SliceStore, config: ExperimentConfig, guided: bool) -> reconstruction.Reconstruction:
    """Reconstructions as a model might make them: the lesion is half gone, with noise."""
    volumes, random = Cohort.of(store, config.data, "val").volumes, np.random.default_rng(0)
    for v in volumes:
        image, lesion = store.image(v).astype(np.float32), store.segmentation(v)
        arrays = {}
        for level in config.reconstruction.noise_levels:
            c = image - 0.1 * lesion + 0.05 * random.normal(size=image.shape).astype(np.float32)
            arrays["c", level, 0] = c
            if guided:
                arrays["u", level, 0] = c + 0.1 * lesion
        part.write_part(reconstruction.parts_directory(path), store.volumes[v].id, arrays)
    ids = [store.volumes[v].id for v in volumes]
    reconstruction.finish(path, ids, path.name, {"volumes": ids})
    return reconstruction.Reconstruction.open(path)


@pytest.fixture(scope="session")
def caches(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, reconstruction.Reconstruction]:
    store, folder = SliceStore.open(store_path), tmp_path_factory.mktemp("caches")
    return {guided: draw_cache(folder / str(guided), store, tiny_config(), guided) for guided in (False, True)}


@pytest.fixture
def scorers(store_path: Path, caches: dict[bool, reconstruction.Reconstruction]) -> dict[bool, Scorer]:
    store = SliceStore.open(store_path)
    return {guided: Cohort.of(store, tiny_config().data, "val").scorer(caches[guided]) for guided in caches}
