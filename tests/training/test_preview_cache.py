"""Predictions in memory are those of the cache on the disk."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from cddpm.reconstruct.cache import ReconstructionCache, finish, parts_directory, write_part
from cddpm.reconstruct.part import rounded
from cddpm.training.preview_cache import PreviewCache


@pytest.mark.parametrize("guided", [True, False])
def test_both_caches_hold_the_same(tmp_path: Path, guided: bool) -> None:
    random = np.random.default_rng(0)
    keys = [("c", *step) for step in itertools.product((50, 10), (0, 3))]
    keys += [("u", *key[1:]) for key in keys] if guided else []
    arrays = {
        volume: {key: random.normal(size=(2, 3, 4)).astype(np.float32) for key in keys} for volume in ("A/1", "B/2")
    }
    for volume in arrays:
        write_part(parts_directory(tmp_path / "cache"), volume, arrays[volume])
    finish(tmp_path / "cache", list(arrays), "name", {})
    disk = ReconstructionCache.open(tmp_path / "cache")
    memory = PreviewCache({volume: rounded(volume, arrays[volume]) for volume in arrays})
    assert (memory.levels, memory.seeds, memory.guided) == (disk.levels, disk.seeds, disk.guided)
    for place in itertools.product(arrays, memory.levels, memory.seeds):
        assert np.array_equal(memory.c(*place), disk.c(*place))
        assert not guided or np.array_equal(memory.d(*place), disk.d(*place))
