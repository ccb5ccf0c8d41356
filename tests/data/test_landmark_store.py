"""Landmarks of a slice store: learnt from the training scans of one fold, whatever the order of work, and kept there."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_data import TinyData

from cddpm.config import DataConfig
from cddpm.data.layout import read_layout
from cddpm.data.store import LANDMARKS, SliceStore, build_store, store_fingerprint, with_landmarks
from cddpm.data.volume import write_volume
from cddpm.errors import DataError

OPTIONS = ("landmarks", "white-stripe", "z-score")


def settings(data: TinyData, **values: Any) -> DataConfig:
    return data.config.model_copy(update={"intensities": "landmarks", "smoothing_iterations": 1, **values})


def build(data: TinyData, config: DataConfig, out: Path, parallel_map: Callable[..., Iterable[Any]] = map) -> Path:
    rows = read_layout(config, data.root).rows
    path = build_store(config, data.root, rows, out, parallel_map)
    assert path.name == store_fingerprint(config, rows, map)  # without preparing anything
    return path


def learnt(path: Path) -> list[float]:
    found: list[float] = json.loads((path / LANDMARKS).read_text())
    return found


def brighter(data: TinyData, dataset: str, subject: str) -> None:
    """Another histogram for one scan."""
    from cddpm.data.volume import read_image

    file = data.file(dataset, subject, "t2")
    image = read_image(file)
    write_volume(file, image.data**2 / 900, image.affine)


@pytest.mark.slow
def test_only_training_scans_of_the_fold_have_a_say(tiny: TinyData, tmp_path: Path) -> None:
    before = learnt(build(tiny, settings(tiny), tmp_path / "a"))
    for dataset, subject in (("IXI", "IXI004-HH-4"), ("IXI", "IXI005-HH-5"), ("Brats21", "BraTS2021_00001")):
        brighter(tiny, dataset, subject)  # validation (training of fold 1), test, unhealthy
    assert learnt(build(tiny, settings(tiny), tmp_path / "a")) == before
    assert learnt(build(tiny, settings(tiny, fold=1), tmp_path / "a")) != before
    brighter(tiny, "IXI", "IXI001-HH-1")
    assert learnt(build(tiny, settings(tiny), tmp_path / "a")) != before


@pytest.mark.slow
def test_the_name_says_whose_landmarks_they_are(tiny: TinyData, tmp_path: Path) -> None:
    zero = build(tiny, settings(tiny), tmp_path)
    assert build(tiny, settings(tiny, fold=1), tmp_path).name != zero.name
    given = with_landmarks(settings(tiny), zero)
    one, two = (build(tiny, given.model_copy(update={"fold": fold}), tmp_path).name for fold in (0, 1))
    assert one == two != zero.name  # landmarks that are named are everybody's
    names = {build(tiny, settings(tiny, intensities=option), tmp_path).name for option in (*OPTIONS, "percentiles")}
    assert len(names) == 4


@pytest.mark.slow
@pytest.mark.parametrize("option", [option for option in OPTIONS if option != "landmarks"])
def test_what_an_option_reads_is_part_of_the_name(option: str, tiny: TinyData, tmp_path: Path) -> None:
    plain = build(tiny, settings(tiny, intensities=option), tmp_path).name
    assert build(tiny, settings(tiny, intensities=option, fold=1), tmp_path).name == plain
    assert build(tiny, settings(tiny, intensities=option, standard_range=(-2.0, 2.0)), tmp_path).name != plain


@pytest.mark.slow
def test_order_of_work_changes_no_byte(tiny: TinyData, tmp_path: Path) -> None:
    def backwards(function: Any, items: list[Any]) -> list[Any]:
        return [function(item) for item in reversed(items)][::-1]

    one, two = build(tiny, settings(tiny), tmp_path / "a"), build(tiny, settings(tiny), tmp_path / "b", backwards)
    for name in (LANDMARKS, "slices.arrow", "volumes.arrow"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


@pytest.mark.slow
def test_named_landmarks_prepare_what_learnt_ones_did(tiny: TinyData, tmp_path: Path) -> None:
    path = build(tiny, settings(tiny), tmp_path)
    config = with_landmarks(settings(tiny), path)
    assert list(config.landmarks or ()) == learnt(path)
    assert with_landmarks(config, path) == config
    again = SliceStore.open(build(tiny, config, tmp_path))
    first = SliceStore.open(path)
    assert not (again.path / LANDMARKS).exists()
    for index in range(len(first.volumes)):
        np.testing.assert_array_equal(first.image(index), again.image(index))


@pytest.mark.slow
def test_without_training_scans_nothing_is_learnt(tiny: TinyData, tmp_path: Path) -> None:
    rows = [row for row in read_layout(settings(tiny), tiny.root).rows if row.split == "test"]
    with pytest.raises(DataError, match="no training scan of IXI in fold 0"):
        build_store(settings(tiny), tiny.root, rows, tmp_path, map)


@pytest.mark.slow
def test_a_changed_scanner_is_another_store(tiny: TinyData, tmp_path: Path) -> None:
    config = settings(tiny, intensities="percentiles")
    rows = [row for row in read_layout(config, tiny.root).rows if row.split == "test"]
    plain, noisy = (build_store(config, tiny.root, rows, tmp_path, map, change) for change in (None, "noise"))
    assert plain.name != noisy.name
    one, two = SliceStore.open(plain), SliceStore.open(noisy)
    assert not np.array_equal(one.image(0), two.image(0))
    np.testing.assert_array_equal(one.mask(0), two.mask(0))
