"""Volumes that reach beyond the model's window: a training sees the window, and all that is scored is of the whole."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_training import BEYOND, SIZE, SLICES, make_store, tiny_config, train

from cddpm.data.slices import BEYOND as FILE
from cddpm.data.slices import SliceStore
from cddpm.errors import ArtifactError
from cddpm.reconstruct.cohort import Cohort, slices_of, tiling_of
from cddpm.reconstruct.predict import Networks, Request
from cddpm.reconstruct.reconstruction import Reconstruction
from cddpm.training import prediction, stages
from cddpm.training.loop import Hooks
from cddpm.training.ranks import Ranks


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("wide"), wide=True)


def test_slices_are_those_of_the_window(wide: Path, store: SliceStore) -> None:
    found = SliceStore.open(wide)
    assert found.slice_shape == (SIZE, SIZE)
    assert len(found) == len(store)
    for record in found.volumes:
        rows = found.slice_ids([record.index])
        window, whole = found.images(rows), found.image(record.index)
        assert window.shape == (SLICES, SIZE, SIZE)
        x, y, z = record.geometry.window
        np.testing.assert_array_equal(window, whole[z, x, y])
        np.testing.assert_array_equal(found.masks(rows), found.mask(record.index)[z, x, y])
        added = [sum(ends) for ends in BEYOND] if record.dataset == "A" else [0, 0, 0]
        assert (
            whole.shape
            == found.segmentation(record.index).shape
            == (SLICES + added[2], SIZE + added[0], SIZE + added[1])
        )


def test_a_file_that_is_gone_or_short_is_told(wide: Path, tmp_path: Path) -> None:
    path = make_store(tmp_path, wide=True)
    other = make_store(tmp_path / "other")
    assert not (other / FILE).exists()
    (path / FILE).unlink()
    with pytest.raises(ArtifactError, match=rf"{FILE}: missing from this slice store"):
        SliceStore(path)
    (path / FILE).write_bytes((wide / "slices.arrow").read_bytes())
    with pytest.raises(ArtifactError, match=r"14 volumes, but volumes\.arrow names 4"):
        SliceStore(path)


@pytest.mark.slow
def test_what_a_trial_keeps_is_what_is_predicted_in_memory(wide: Path, tmp_path: Path, finished: Any) -> None:
    """Through the stages on the disk; what a plane holds beyond the window has a prediction, blended with the window's own."""
    config, place = finished.config, stages.Place(tmp_path, wide)
    store = SliceStore.open(wide)
    cohort = Cohort.of(store, config.data, "val")
    kept = Reconstruction.open(
        prediction.reconstruct(config, place, finished.made.checkpoint, cohort.volumes, Ranks(), Hooks())
    )
    model, _ = stages.load_model(finished.made.checkpoint, Ranks().device)
    found = cohort.reconstruct(Networks(config, model))
    for v in cohort.volumes:
        name = store.volumes[v].id
        for level in kept.levels:
            np.testing.assert_array_equal(kept.c(name, level, 0), found.c(name, level, 0))
            assert kept.c(name, level, 0).shape == store.image(v).shape
        tiling = tiling_of(store, v)
        assert (tiling is None) == (store.volumes[v].dataset != "A")
        assert len(slices_of(store, v)) == (SLICES if tiling is None else len(tiling.own) + len(tiling.others))
        if tiling is not None:
            level, outside = kept.levels[0], np.ones(store.image(v).shape, bool)
            outside[tiling.window] = False
            assert kept.c(name, level, 0)[outside & (store.mask(v) > 0)].any()
            alone = Request(name, store.image(v)[tiling.window], ((level, 0),))
            ((_, own),) = Networks(config, model).predict([alone])
            z = tiling.window[0]
            tiled = {s for s, _ in tiling.others}
            assert (set(range(z.start, z.stop)) & tiled) == set(range(z.start, z.stop))  # all planes of these are wider
            inner = kept.c(name, level, 0)[tiling.window]
            near = np.abs(inner.astype(np.float32) - own["c", level, 0])
            assert np.median(near[store.mask(v)[tiling.window] > 0]) < 0.2  # blended with it, not another picture
    assert 0 <= cohort.scorer(kept).score(config.scoring).objective <= 1


@pytest.mark.slow
def test_a_training_previews_the_whole_and_learns_from_the_window(wide: Path, tmp_path: Path) -> None:
    reports: list[dict[str, float]] = []
    config = tiny_config(pretraining__enabled=False)
    made = train(config, wide, tmp_path, Hooks(report=reports.append))
    assert made.checkpoint.exists()
    assert all(0 <= report["monitor/A/dice"] <= 1 for report in reports)
