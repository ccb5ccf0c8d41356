"""The drawn cohort looks like what scoring meets, and is the same each time."""

from pathlib import Path

import numpy as np
import pytest
from speed.cohort import DATASET, LEVELS, Cohort, draw, experiment

from cddpm.artifact import file_digest
from cddpm.data.slices import SliceStore
from cddpm.reconstruct.reconstruction import Reconstruction, parts_directory
from cddpm.search.point import score_point

SHAPE = (12, 64, 64)


def test_a_third_is_brain_with_a_small_lesion_inside(cohort: Cohort) -> None:
    store = SliceStore.open(cohort.store)
    assert len(store.volumes) == 3
    for v in range(3):
        brain, lesion = store.mask(v) > 0, store.segmentation(v) > 0
        assert brain.shape == SHAPE
        assert 0.2 < brain.mean() < 0.4
        assert 0 < lesion.sum() < 0.1 * brain.sum()
        assert not (lesion & ~brain).any()
        assert not store.image(v)[~brain].any()
        assert len(np.unique(store.image(v)[brain])) > 500


def test_the_cache_holds_both_branches_at_every_level(cohort: Cohort) -> None:
    store, opened = SliceStore.open(cohort.store), Reconstruction.open(cohort.reconstructions)
    assert (opened.levels, opened.guided) == (LEVELS, True)
    for record in store.volumes:
        lesion = store.segmentation(record.index) > 0
        errors = [
            np.abs(store.image(record.index) - opened.c(record.id, level, 0).astype(np.float32))[lesion].mean()
            for level in LEVELS
        ]
        assert errors == sorted(errors)  # the more noise, the less of the lesion is left
        assert opened.d(record.id, LEVELS[0], 0).any()


@pytest.mark.slow
def test_volumes_differ_and_drawing_again_gives_the_same_files(cohort: Cohort, tmp_path: Path) -> None:
    again = draw(tmp_path, 3, SHAPE)
    for name in ("slices.arrow", "volumes.arrow"):
        assert file_digest(again.store / name) == file_digest(cohort.store / name)
    here, there = (_digests(parts_directory(one.reconstructions)) for one in (cohort, again))
    assert len(set(here.values())) == len(here) == 3 * len(LEVELS)
    assert there == here


def _digests(folder: Path) -> dict[Path, str]:
    return {part.relative_to(folder): file_digest(part) for part in folder.rglob("*.arrow")}


def test_a_search_finds_the_lesions(cohort: Cohort) -> None:
    point = score_point(cohort.scorer(3), experiment(SHAPE), (0, {}))
    assert 0.5 < point.objective < 1
    assert len(cohort.scorer(2).cases(DATASET)) == 2
