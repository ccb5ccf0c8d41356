"""The slice store: made once, read without copying, refused when damaged."""

import json
import multiprocessing
import pickle
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tiny_data import TinyData, row

from cddpm import artifact
from cddpm.data.layout import read_layout
from cddpm.data.prepare import prepare
from cddpm.data.store import SliceStore, build_store
from cddpm.data.volume import read_image, read_mask, read_segmentation
from cddpm.errors import ArtifactError, DataError
from cddpm.shelf import Shelf


def build(data: TinyData, out: Path, parallel_map: Callable[..., Iterable[Any]] = map, **settings: Any) -> Path:
    config = data.config.model_copy(update=settings)
    return build_store(config, data.root, read_layout(config, data.root).rows, out, parallel_map)


@pytest.fixture
def store(tiny: TinyData, tmp_path: Path) -> SliceStore:
    return SliceStore.open(build(tiny, tmp_path / "artifacts"))


def counting(calls: list[str]) -> Callable[..., Iterable[Any]]:
    """A map that notes the function's name per item."""

    def parallel_map(function: Any, items: list[Any]) -> Iterable[Any]:
        for item in items:
            calls.append(getattr(function, "func", function).__name__)
            yield function(item)

    return parallel_map


def test_store_holds_what_prepare_makes(tiny: TinyData, store: SliceStore) -> None:
    record = next(v for v in store.volumes if v.subject == "BraTS2021_00002")
    files = [tiny.file("Brats21", record.subject, kind) for kind in ("t2", "mask", "seg")]
    done = prepare(read_image(files[0]), read_mask(files[1]), read_segmentation(files[2]), tiny.config)
    np.testing.assert_array_equal(store.image(record.index), done.image.astype(np.float16).transpose(2, 0, 1))
    np.testing.assert_array_equal(store.mask(record.index), done.mask.transpose(2, 0, 1))
    assert done.segmentation is not None
    np.testing.assert_array_equal(store.segmentation(record.index), done.segmentation.transpose(2, 0, 1))
    assert record.geometry == done.geometry
    assert record.digest == artifact.file_digest(files[0])
    assert (record.id, record.label, record.modality, record.slices) == ("Brats21/BraTS2021_00002", 1, "t2", 5)


def test_what_lies_beyond_the_window_is_counted_in_the_voxels_of_the_file(tiny: TinyData, tmp_path: Path) -> None:
    """Six of ten planes are looked at, voxel for voxel: what is seen and what is not make the whole."""
    path = build(tiny, tmp_path / "artifacts", volume_shape=(16, 18, 6), rescale_factor=1.0, centre="image")
    found = SliceStore.open(path)
    for record in found.volumes:
        mask = read_mask(tiny.file(record.dataset, record.subject, "mask")).data
        ends = np.r_[0:2, 8:10]
        assert record.brain_unseen_ml == pytest.approx(np.count_nonzero(mask[..., ends]))  # voxels of 1 ml
        seen = np.count_nonzero(found.mask(record.index))
        assert record.brain_unseen_ml + seen == pytest.approx(np.count_nonzero(mask))
        lesion = np.zeros_like(mask)
        if record.label:
            lesion = read_image(tiny.file(record.dataset, record.subject, "seg")).data
            assert np.count_nonzero(lesion[..., ends])
        assert record.lesion_unseen_ml == pytest.approx(np.count_nonzero(lesion[..., ends]))
    whole = SliceStore.open(build(tiny, tmp_path / "artifacts", volume_shape=(16, 18, None)))
    assert {(v.brain_unseen_ml, v.lesion_unseen_ml) for v in whole.volumes} == {(0.0, 0.0)}


def test_second_build_prepares_nothing(tiny: TinyData, tmp_path: Path) -> None:
    calls: list[str] = []
    first = build(tiny, tmp_path / "a", counting(calls))
    assert calls.count("_prepare_scan") == 9  # all folds: each scan once
    calls.clear()
    assert build(tiny, tmp_path / "a", counting(calls)) == first
    assert set(calls) == {"_digest"}


def test_who_asks_is_told_of_a_store_that_was_made_not_of_one_that_was_found(tiny: TinyData, tmp_path: Path) -> None:
    """On another node, which fetches it, neither: a sweep that is resumed on a new head has not computed it again."""
    rows, made = read_layout(tiny.config, tiny.root).rows, list[str]()
    for node in ("first", "second", "first"):
        shelf = Shelf(tmp_path / node / "artifacts", f"file://{tmp_path}/bucket")
        build_store(tiny.config, tiny.root, rows, shelf, map, on_made=lambda node=node: made.append(node))  # type: ignore[misc]
    assert made == ["first"]


def test_place_and_fold_are_no_part_of_the_name(tiny: TinyData, tmp_path: Path) -> None:
    first = build(tiny, tmp_path / "a")
    moved = TinyData(tmp_path / "elsewhere" / "Data", tiny.config)
    shutil.copytree(tiny.root, moved.root)
    assert build(moved, tmp_path / "b", fold=1, data_dir=moved.root).name == first.name


@pytest.mark.slow
def test_equal_input_equal_files(tiny: TinyData, tmp_path: Path) -> None:
    one, two = build(tiny, tmp_path / "a"), build(tiny, tmp_path / "b")
    for name in ("slices.arrow", "volumes.arrow", "cohorts.arrow"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"smoothing_iterations": 1},
        {"percentiles": (2.0, 98.0)},
        {"orientation": "RAS"},
        {"rescale_grid": "published"},
        {"centre": "scan"},
    ],
)
def test_settings_that_matter_change_the_name(tiny: TinyData, tmp_path: Path, change: dict[str, Any]) -> None:
    assert build(tiny, tmp_path, **change) != build(tiny, tmp_path)


@pytest.mark.slow
def test_changed_file_and_changed_split_change_the_name(tiny: TinyData, tmp_path: Path) -> None:
    first = build(tiny, tmp_path)
    shutil.copy(tiny.file("Brats21", "BraTS2021_00002", "seg"), tiny.file("IXI", "IXI001-HH-1", "mask"))
    second = build(tiny, tmp_path)
    tiny.write_rows("IXI_val_fold1", [row("IXI", "IXI001-HH-1")] * 1 + [row("IXI", "IXI007-HH-7")])
    tiny.add_subject("IXI", "IXI007-HH-7", 70)
    tiny.split("avail_t2").unlink()
    assert len({first, second, build(tiny, tmp_path)}) == 3


def test_cohorts(store: SliceStore) -> None:
    names = [store.volumes[v].subject for v in store.cohort("IXI", "train", 1)]
    assert names == ["IXI002-HH-2", "IXI003-HH-3", "IXI004-HH-4"]
    assert store.cohort("IXI", "test", 1) == store.cohort("IXI", "test")
    assert [store.volumes[v].subject for v in store.cohort("Brats21", "val", 0)] == ["BraTS2021_00001"]


def test_cohort_that_is_not_there_tells_what_is(store: SliceStore) -> None:
    with pytest.raises(
        DataError, match=r"no volumes of MSLUB test; there are Brats21 test, Brats21 val, IXI test, IXI train"
    ):
        store.cohort("MSLUB", "test")
    with pytest.raises(DataError, match=r"no volumes of IXI train fold 7; .*IXI train fold 1"):
        store.cohort("IXI", "train", 7)


def test_views_are_the_mapped_file(store: SliceStore) -> None:
    mapped = pa.memory_map(str(store.path / "slices.arrow")).read_buffer()
    before = pa.total_allocated_bytes()
    views = [store.image(v.index) for v in store.volumes] + [store.mask(0), store.segmentation(0)]
    assert pa.total_allocated_bytes() == before
    assert all(not view.flags.writeable and not view.flags.owndata for view in views)
    raw = np.frombuffer(mapped, np.uint8).tobytes()
    assert views[0].tobytes() in raw
    again = store.image(0)
    assert np.shares_memory(views[0], again)
    with pytest.raises(ValueError, match="read-only"):
        again[0, 0, 0] = 1


def test_gathered_slices_equal_the_views(store: SliceStore) -> None:
    rows = [12, 0, 44, 12]
    images, masks = store.images(rows), store.masks(np.array(rows))
    assert images.dtype == np.float32
    for place, global_row in enumerate(rows):
        volume, inner = divmod(global_row, 5)
        np.testing.assert_array_equal(images[place], store.image(volume)[inner])
        np.testing.assert_array_equal(masks[place], store.mask(volume)[inner])
    assert store.images([]).shape == (0, 8, 8)
    for wrong in (-1, 45):
        with pytest.raises(IndexError, match="this store holds 0 to 44"):
            store.images([wrong])


def test_slices_with_little_brain_are_left_out(store: SliceStore) -> None:
    everything = store.slice_ids([1, 3])
    np.testing.assert_array_equal(everything, [5, 6, 7, 8, 9, 15, 16, 17, 18, 19])
    fraction = store.masks(everything).mean((1, 2))
    threshold = float(np.median(fraction))
    np.testing.assert_array_equal(store.slice_ids([1, 3], threshold), everything[fraction >= np.float32(threshold)])
    assert 0 < len(store.slice_ids([1, 3], threshold)) < 10
    assert len(store.slice_ids([1], 1.0)) == 0


def test_pickle_is_a_path(store: SliceStore) -> None:
    text = pickle.dumps(store)
    assert len(text) < 500
    copy = pickle.loads(text)
    np.testing.assert_array_equal(copy.images([3, 9]), store.images([3, 9]))
    assert copy.fingerprint == store.fingerprint == store.path.name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["slices.arrow", "volumes.arrow", "cohorts.arrow"])
@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_damaged_file_is_refused_by_name(store: SliceStore, name: str, how: str) -> None:
    file = store.path / name
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.unlink()
    if how != "gone":
        file.write_bytes(raw if how == "flipped" else raw[:-40])
    with pytest.raises(ArtifactError, match=name):
        SliceStore.open(store.path)
    if how != "flipped":
        with pytest.raises(ArtifactError, match=name):
            SliceStore.open(store.path, verify=False)


def test_store_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="this slice store does not exist"):
        SliceStore.open(tmp_path / "gone")


def test_every_bad_scan_is_named_and_nothing_is_left(tiny: TinyData, tmp_path: Path) -> None:
    paths = [tiny.file("IXI", s, "t2") for s in ("IXI001-HH-1", "IXI006-HH-6")]
    for path in paths:
        path.write_bytes(b"no volume")
    with pytest.raises(DataError) as caught:
        build(tiny, tmp_path / "a")
    assert all(str(path) in str(caught.value) for path in paths)
    assert [p for p in (tmp_path / "a" / "store").iterdir() if not p.name.endswith(".lock")] == []
    paths[0].unlink()
    with pytest.raises(DataError, match=r"IXI001-HH-1_t2\.nii\.gz: cannot be read \(No such file"):
        build(tiny, tmp_path / "a")


@pytest.mark.slow
def test_processes_make_the_same_store(tiny: TinyData, tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        parallel = build(tiny, tmp_path / "a", pool.map)
    plain = build(tiny, tmp_path / "b")
    assert (parallel / "slices.arrow").read_bytes() == (plain / "slices.arrow").read_bytes()


def test_manifest_tells_the_lineage(tiny: TinyData, store: SliceStore) -> None:
    made_from = artifact.verify(store.path, "slice store").made_from
    image = tiny.file("IXI", "IXI001-HH-1", "t2")
    assert made_from["files"][str(image.relative_to(tiny.root))] == artifact.file_digest(image)
    assert made_from["settings"]["smoothing_iterations"] == 3
    assert "fold" not in json.dumps(made_from["settings"])
