"""Domain shift: a shifted cohort is the test cohort with other intensities, and nothing else."""

from pathlib import Path

import numpy as np
import pytest
from tiny_training import make_store, tiny_config

from cddpm.data.store import SliceStore
from cddpm.evaluation.shift import apply_power, contrast_store, shifted
from cddpm.reconstruct.cohort import Cohort
from cddpm.scoring.score import HEALTHY
from cddpm.shelf import Shelf


@pytest.fixture(scope="module", params=[False, True], ids=["window", "whole brains"])
def home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("shift"), wide=request.param)


def test_only_test_scans_are_kept_and_only_their_intensities_change(home: Path) -> None:
    origin = SliceStore.open(home)
    moved = SliceStore.open(contrast_store(home, 0.5, Shelf(home.parents[1])))
    kept = [v for v in range(len(origin.volumes)) if v in {*origin.cohort("A", "test"), *origin.cohort("IXI", "test")}]
    assert [v.id for v in moved.volumes] == [origin.volumes[v].id for v in kept]
    for new, old in enumerate(kept):
        np.testing.assert_array_equal(moved.mask(new), origin.mask(old))
        np.testing.assert_array_equal(moved.segmentation(new), origin.segmentation(old))
        expected = apply_power(origin.image(old).astype(np.float32), 0.5, origin.mask(old)).astype(np.float16)
        np.testing.assert_array_equal(moved.image(new), expected)
        assert moved.volumes[new].geometry == origin.volumes[old].geometry
        assert not np.array_equal(moved.image(new), origin.image(old))
    assert moved.cohort("A", "test") == [moved.volumes.index(v) for v in moved.volumes if v.dataset == "A"]


def test_each_power_is_made_once(home: Path) -> None:
    first = contrast_store(home, 2.0, Shelf(home.parents[1]))
    written = (first / "manifest.json").stat().st_mtime_ns
    assert contrast_store(home, 2.0, Shelf(home.parents[1])) == first
    assert (first / "manifest.json").stat().st_mtime_ns == written
    assert contrast_store(home, 0.7, Shelf(home.parents[1])) != first


class Copied:
    """Reconstructions that are the image itself, or darker by a constant."""

    levels, seeds, guided = (1,), (0,), False

    def __init__(self, store: SliceStore, darker: float) -> None:
        self._images = {v.id: store.image(v.index).astype(np.float32) - darker for v in store.volumes}

    def c(self, volume: str, level: int, seed: int) -> np.ndarray:
        return self._images[volume].astype(np.float16)

    d = c


@pytest.mark.slow
def test_the_divergence_is_that_of_input_and_reconstruction(home: Path) -> None:
    store, config = SliceStore.open(home), tiny_config(data__unhealthy=["A"], search__datasets=["A"])
    rows = {}
    for darker in (0.0, 0.25):
        test, validation = (
            Cohort.of(store, config.data, split).scorer(Copied(store, darker)) for split in ("test", "val")
        )
        found = shifted("power 2", test, config.scoring, {"all": 0.1}, config.evaluation, validation)
        assert [(row["shift"], row["dataset"]) for row in found] == [("power 2", "A"), ("power 2", HEALTHY)]
        rows[darker] = found[0]
    assert rows[0.0]["wasserstein"] == pytest.approx(0, abs=1e-6)
    assert rows[0.0]["jensen_shannon"] == 0
    assert rows[0.25]["wasserstein"] == pytest.approx(0.25, abs=1e-3)
    assert rows[0.25]["jensen_shannon"] > 0.1
