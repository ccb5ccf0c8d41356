"""Laws of a prediction of the whole brain: the package's window is what it was, and nothing of the brain goes unlooked at."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_package import QUICK, SCORING, Scan, make_package

from cddpm.config import with_values
from cddpm.data.check import read_scan
from cddpm.data.layout import ScanRow
from cddpm.data.prepare import label_on_working_grid
from cddpm.data.slices import axial
from cddpm.data.store import SliceStore, build_store
from cddpm.data.volume import Volume, read_image, read_mask, read_segmentation, write_volume
from cddpm.predict import batch, result
from cddpm.predict.predictor import Prediction, Predictor, settings
from cddpm.predict.scans import Job
from cddpm.reconstruct.cohort import Cohort
from cddpm.reconstruct.predict import Networks
from cddpm.tracking.package import Package

pytestmark = pytest.mark.slow

KEY = "Brats21/patient"
RADIUS = SCORING.median_kernel // 2


@pytest.fixture(scope="module")
def low(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """Of a model with a window of few slices."""
    return make_package(
        tmp_path_factory.mktemp("low") / "package", with_values(QUICK, {"data.volume_shape": [96, 96, 24]})
    )


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """Of a model with slices that are smaller than the brain's."""
    return make_package(
        tmp_path_factory.mktemp("narrow") / "package", with_values(QUICK, {"data.volume_shape": [48, 48, 78]})
    )


@pytest.fixture(scope="module")
def whole(low: Package, scan: Scan) -> Prediction:
    return Predictor(low).predict_scan(scan.image, scan.mask, KEY)


@pytest.fixture(scope="module")
def window(low: Package, scan: Scan) -> Prediction:
    return Predictor(low, window="package").predict_scan(scan.image, scan.mask, KEY)


def shared(found: Prediction) -> tuple[slice, slice, slice]:
    """Where the package's window lies in the slices (S, H, W) of a prediction."""
    x, y, z = found.working.geometry.window
    return z, x, y


def test_slices_of_the_window_are_those_of_the_window_alone(whole: Prediction, window: Prediction) -> None:
    """Input and reconstruction bit for bit; the map but for the slices at its ends, to which the median filter reaches."""
    there = shared(whole)
    assert there[0].start > RADIUS
    np.testing.assert_array_equal(whole.working.image[there], window.working.image)
    brain = window.working.reconstruction != 0
    np.testing.assert_array_equal(whole.working.reconstruction[there][brain], window.working.reconstruction[brain])
    inner = slice(RADIUS, len(window.working.image) - RADIUS)
    assert window.working.anomaly_map[inner].any()
    np.testing.assert_array_equal(whole.working.anomaly_map[there][inner], window.working.anomaly_map[inner])
    assert whole.intensities == window.intensities


def test_all_of_the_brain_has_a_map_and_is_counted(whole: Prediction, window: Prediction, scan: Scan) -> None:
    brain = scan.mask.data > 0
    np.testing.assert_array_equal(whole.coverage.looked_at, brain)
    assert 0 < window.coverage.looked_at.sum() < brain.sum()
    beyond = brain & ~window.coverage.looked_at
    assert not window.anomaly_map[beyond].any()
    assert not window.reconstruction[beyond].any()
    assert (whole.anomaly_map[beyond] > 0).mean() > 0.5
    told, alone = whole.coverage.to_dict(), window.coverage.to_dict()
    assert told["looked_at_fraction_of_brain"] == 1
    assert alone["looked_at_fraction_of_brain"] == pytest.approx(1 - beyond.sum() / brain.sum())
    assert told["beyond_window_ml"] == pytest.approx(beyond.sum() * 0.008, rel=0.2)
    assert told["slices"] - told["slices_beyond_window"] == alone["slices"] == len(window.working.image)
    assert alone["beyond_window_ml"] == alone["slices_beyond_window"] == 0


def test_what_was_not_looked_at_or_is_unlike_the_training_is_told(whole: Prediction, window: Prediction) -> None:
    assert any("outside of the model's field of view and was not looked at" in text for text in window.warnings)
    assert not any("not looked at" in text for text in whole.warnings)
    beyond = f"{whole.coverage.slices_beyond_window} of {whole.coverage.slices} axial slices"
    assert any(beyond in text and "trained on" in text for text in whole.warnings)
    assert not any("trained on" in text for text in window.warnings)


def test_where_the_window_holds_all_nothing_changes(quick_package: Package, scan: Scan) -> None:
    tall = with_values(QUICK, {"data.volume_shape": [96, 96, 96]})
    package = dataclasses.replace(quick_package, config=tall)
    one, other = (Predictor(package, window=window).predict_scan(scan.image, scan.mask, KEY) for window in WINDOWS)
    np.testing.assert_array_equal(one.anomaly_map, other.anomaly_map)
    np.testing.assert_array_equal(one.segmentation, other.segmentation)
    assert one.working.geometry == other.working.geometry
    assert one.warnings == other.warnings


WINDOWS: tuple[Any, ...] = ("package", "whole")


@pytest.mark.parametrize("edge", [96, 48])
def test_a_model_of_whole_brains_looks_at_all_of_them(quick_package: Package, scan: Scan, edge: int) -> None:
    free = with_values(QUICK, {"data.volume_shape": [edge, edge, None]})
    package = dataclasses.replace(quick_package, config=free)
    one, other = (Predictor(package, window=window).predict_scan(scan.image, scan.mask, KEY) for window in WINDOWS)
    np.testing.assert_array_equal(one.coverage.looked_at, scan.mask.data > 0)
    np.testing.assert_array_equal(one.anomaly_map, other.anomaly_map)
    assert (one.coverage.beyond_window_ml == 0) == (edge == 96)
    assert Predictor(package, window="package").window == "whole"
    assert settings(package, "package") == settings(package, "whole")
    assert any("that the model was trained on; what" in text for text in one.warnings) == (edge == 48)


@pytest.mark.parametrize("edge", [96, 48])
def test_scans_of_a_store_are_looked_at_whole_and_score_as_they_are_predicted(
    quick_package: Package, scan: Scan, tmp_path: Path, edge: int
) -> None:
    """The spine of searches and evaluations, over volumes of different sizes; slices of 48 are smaller than the brains."""
    free = with_values(QUICK, {"data.volume_shape": [edge, edge, None]})
    places = np.flatnonzero(scan.mask.data.any((0, 1)))
    lower = scan.mask.data.copy()
    lower[:, :, places[len(places) * 2 // 3] :] = 0
    write_volume(tmp_path / "lower_mask.nii.gz", lower, scan.mask.affine)
    masks = {"patient": scan.mask.path, "lower": tmp_path / "lower_mask.nii.gz"}
    rows = [
        ScanRow("Brats21", name, "val", None, 1, None, scan.image.path, mask, scan.segmentation, "here:1")
        for name, mask in masks.items()
    ]
    store = SliceStore.open(build_store(free.data, tmp_path, rows, tmp_path, map))
    counts = [volume.slices for volume in store.volumes]
    assert counts[0] > counts[1] + 3
    assert store.slice_shape == store.images([0]).shape[1:] == (edge // 3, edge // 3)
    assert all((store.image(v).shape[1:] != store.slice_shape) == (edge == 48) for v in range(2))
    assert [volume.brain_unseen_ml for volume in store.volumes] == [0, 0]
    assert store.volumes[0].lesion_unseen_ml == 0
    predictor = Predictor(dataclasses.replace(quick_package, config=free))
    cohort = Cohort(store, {"Brats21": [0, 1]})
    scorer = cohort.scorer(cohort.reconstruct(Networks(free, predictor._model), SCORING))
    assert 0 <= scorer.score(SCORING).objective <= 1
    found = predictor.predict_scan(scan.image, scan.mask, KEY).working
    np.testing.assert_array_equal(found.anomaly_map, scorer.anomaly_map(0, SCORING))
    other = predictor.predict_scan(scan.image, read_mask(masks["lower"]), "Brats21/lower").working
    np.testing.assert_array_equal(other.anomaly_map, scorer.anomaly_map(1, SCORING))
    lesions = label_on_working_grid(read_segmentation(scan.segmentation).data, found.geometry)
    np.testing.assert_array_equal(store.segmentation(0), axial(lesions))
    reading = read_scan(free.data, rows[0])  # the check of a sweep says the same
    assert reading.truth is not None
    assert reading.truth.working_voxels == np.count_nonzero(store.segmentation(0))
    assert not any("not looked at" in finding.found for finding in reading.findings)


def test_a_wider_head_is_seen_through_tiles(narrow: Package, scan: Scan) -> None:
    whole = Predictor(narrow).predict_scan(scan.image, scan.mask, KEY)
    window = Predictor(narrow, window="package").predict_scan(scan.image, scan.mask, KEY)
    np.testing.assert_array_equal(whole.coverage.looked_at, scan.mask.data > 0)
    beyond = (scan.mask.data > 0) & ~window.coverage.looked_at
    assert (whole.anomaly_map[beyond] > 0).mean() > 0.5
    there = shared(whole)
    np.testing.assert_array_equal(whole.working.image[there], window.working.image)
    brain = axial(label_on_working_grid(scan.mask.data, whole.working.geometry))
    outside = brain.copy()
    outside[:, there[1], there[2]] = 0
    fits = ~outside.any((1, 2))[there[0]]
    assert 0 < fits.sum() < len(fits)
    here = window.working.reconstruction != 0
    for s in np.flatnonzero(fits):
        found = whole.working.reconstruction[there][s]
        np.testing.assert_array_equal(found[here[s]], window.working.reconstruction[s][here[s]])


def test_a_brain_moved_in_its_file_gives_the_same(low: Package, scan: Scan, whole: Prediction) -> None:
    def moved(one: Volume) -> Volume:
        affine = one.affine.copy()
        affine[:3, 3] -= one.affine[:3, :3] @ [7, 4, 9]
        return dataclasses.replace(one, data=np.pad(one.data, ((7, 3), (4, 6), (9, 2))), affine=affine)

    found = Predictor(low).predict_scan(moved(scan.image), moved(scan.mask), KEY)
    inner = tuple(slice(a, a + n) for a, n in zip((7, 4, 9), scan.image.data.shape, strict=True))
    np.testing.assert_array_equal(found.anomaly_map[inner], whole.anomaly_map)
    np.testing.assert_array_equal(found.segmentation[inner], whole.segmentation)


def test_the_window_is_part_of_a_result(low: Package, scan: Scan, tmp_path: Path) -> None:
    """Written, named, and never taken for one of the other window."""
    job = Job(scan.image.path, tmp_path / "out", scan.mask.path, KEY)
    work = batch.Work(low, {}, resume=True)
    done = work()(job)
    assert done.error is None
    coverage = read_image(job.folder / result.COVERAGE).data
    np.testing.assert_array_equal(coverage > 0, scan.mask.data > 0)
    found = result._read(job.folder)
    assert found["identity"]["window"] == found["coverage"]["window"] == found["settings"]["window"] == "whole"
    assert work()(job).kept
    again = dataclasses.replace(work, window="package")()(job)
    assert not again.kept
    found = result._read(job.folder)
    assert found["identity"]["window"] == found["coverage"]["window"] == "package"
    assert found["coverage"]["looked_at_fraction_of_brain"] < 1


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["ch2bet"])
def test_of_a_real_brain_all_is_looked_at(quick_package: Package, name: str, tmp_path: Path) -> None:
    file = Path(f"/usr/share/mricron/templates/{name}.nii.gz")
    if not file.exists():
        pytest.skip(f"{file} is not here; Debian's package mricron-data has it")
    own = with_values(QUICK, {"data.voxel_size_mm": 1.0, "data.volume_shape": [192, 192, 100], "data.modality": "t1"})
    package = dataclasses.replace(quick_package, config=with_values(own, {"data.rescale_factor": 6}))
    found = Predictor(package).predict_scan(read_image(file))
    assert found.coverage.to_dict()["looked_at_fraction_of_brain"] == 1
    assert found.coverage.beyond_window_ml > 100
    write_volume(tmp_path / "coverage.nii.gz", found.coverage.looked_at.astype(np.uint8), read_image(file).affine)
