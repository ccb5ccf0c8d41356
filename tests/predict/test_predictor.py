"""Laws of a prediction: it is the scorer's, on the scan's own grid, whichever way the scan lies in its file."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import ndimage
from tiny_package import EXPERIMENT, SCORING, Scan, make_scan, turned, turned_array

from cddpm.config import with_values
from cddpm.data.layout import ScanRow
from cddpm.data.store import SliceStore, build_store
from cddpm.data.volume import Volume
from cddpm.errors import ArtifactError, CddpmError, ConfigError, VolumeError
from cddpm.models.precision import hardware
from cddpm.predict.predictor import Prediction, Predictor, overview_rows
from cddpm.reconstruct import part, reconstruction
from cddpm.reconstruct.predict import Networks, Request
from cddpm.reconstruct.reconstruction import View
from cddpm.scoring.score import Scorer
from cddpm.tracking.package import Package, Pipeline

pytestmark = pytest.mark.slow

KEY = "Brats21/patient"


@pytest.fixture(scope="session")
def scorer(predictor: Predictor, scan: Scan, tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    """The scan's way through a sweep: store, reconstruction cache, scorer."""
    folder = tmp_path_factory.mktemp("sweep")
    row = ScanRow(
        "Brats21", "patient", "val", None, 1, None, scan.image.path, scan.mask.path, scan.segmentation, "here:1"
    )
    store = SliceStore.open(build_store(EXPERIMENT.data, scan.image.path.parent, [row], folder, map))
    model = predictor._model
    request = Request(KEY, store.image(0), View.of([KEY], EXPERIMENT.reconstruction).steps)
    ((_, arrays),) = Networks(EXPERIMENT, model).predict([request])
    part.write_part(reconstruction.parts_directory(folder / "cache"), KEY, arrays)
    reconstruction.finish(folder / "cache", [KEY], "cache", {"volumes": [KEY]})
    return Scorer(store, reconstruction.Reconstruction.open(folder / "cache"), {"Brats21": [0]})


def test_equals_the_scorer_bit_by_bit(scorer: Scorer, prediction: Prediction) -> None:
    working = prediction.working
    assert working.anomaly_map.any()
    np.testing.assert_array_equal(working.image, scorer.store.image(0))
    np.testing.assert_array_equal(working.anomaly_map, scorer.anomaly_map(0, SCORING))
    np.testing.assert_array_equal(working.reconstruction, scorer.reconstruction(0, SCORING))
    np.testing.assert_array_equal(working.segmentation, scorer.segmentation(0, SCORING, 0.33))


def test_without_guidance_too(scorer: Scorer, predictor: Predictor, scan: Scan, package: Package, monkeypatch) -> None:
    plain = _pipeline(guidance_scale=1.0)
    monkeypatch.setattr(predictor, "package", dataclasses.replace(package, pipeline=plain))
    found = predictor.predict_scan(scan.image, scan.mask, KEY).working.anomaly_map
    np.testing.assert_array_equal(found, scorer.anomaly_map(0, plain.scoring))


OPTIONS = {
    "weights": {"noise_levels": (200, 500), "level_weights": (3, 1)},
    "geometric mean": {"noise_levels": None, "combine": "geometric-mean", "connectivity": 6},
    "ssim": {"residual": "ssim", "match_histogram": True},
    "ssim ensemble": {"residual": "ssim-ensemble", "noise_levels": None, "combine": "median"},
    "mahalanobis": {"residual": "mahalanobis", "component_size": "voxels"},
    "healthy z": {"noise_levels": None, "combine": "mean", "normalise": "healthy-z"},
    "healthy z by intensity": {"normalise": "healthy-z-by-intensity"},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_equals_the_scorer_with_every_option(
    option: str, scorer: Scorer, predictor: Predictor, scan: Scan, package: Package, monkeypatch
) -> None:
    changed = SCORING.model_copy(update=OPTIONS[option])
    # statistics come from healthy validation volumes; here the scan stands for them
    validation = Scorer(scorer.store, scorer._ensemble.cache, {"Brats21": [0]}, [0])
    pipeline = Pipeline(scoring=changed, thresholds={"all": 0.1}, healthy_statistics=validation.statistics(changed))
    monkeypatch.setattr(predictor, "package", dataclasses.replace(package, pipeline=pipeline))
    found = predictor.predict_scan(scan.image, scan.mask, KEY).working
    assert found.anomaly_map.any()
    np.testing.assert_array_equal(found.anomaly_map, validation.anomaly_map(0, changed))
    np.testing.assert_array_equal(found.reconstruction, validation.reconstruction(0, changed))
    np.testing.assert_array_equal(found.segmentation, validation.segmentation(0, changed, 0.1))


def test_a_pipeline_without_the_statistics_that_it_needs_is_refused() -> None:
    scoring = SCORING.model_copy(update={"normalise": "healthy-z"})
    with pytest.raises(ValueError, match="healthy_statistics: missing"):
        Pipeline(scoring=scoring, thresholds={"all": 0.1})


def test_with_fewer_levels_too(scorer: Scorer, predictor: Predictor, scan: Scan, package: Package, monkeypatch) -> None:
    """Only those that scoring averages are predicted; without the others no bit changes."""
    level = EXPERIMENT.reconstruction.noise_levels[-1]
    assert len(EXPERIMENT.reconstruction.noise_levels) > 1
    fewer = _pipeline(noise_levels=(level,))
    monkeypatch.setattr(predictor, "package", dataclasses.replace(package, pipeline=fewer))
    working = predictor.predict_scan(scan.image, scan.mask, KEY).working
    np.testing.assert_array_equal(working.reconstruction, scorer.reconstruction(0, fewer.scoring))
    np.testing.assert_array_equal(working.anomaly_map, scorer.anomaly_map(0, fewer.scoring))


def test_the_name_seeds_the_noise(predictor: Predictor, scan: Scan, prediction: Prediction) -> None:
    named = predictor.predict_scan(scan.image, scan.mask)
    assert named.volume_key == "patient"
    assert (named.working.anomaly_map != prediction.working.anomaly_map).any()


def test_results_lie_on_the_scans_grid(scan: Scan, prediction: Prediction) -> None:
    outside = scan.mask.data == 0
    for array in (prediction.anomaly_map, prediction.reconstruction, prediction.segmentation):
        assert array.shape == scan.image.data.shape
        assert not array[outside].any()
    assert prediction.anomaly_map.dtype == prediction.reconstruction.dtype == np.float32
    assert set(np.unique(prediction.segmentation)) == {0, 1}
    ml = np.count_nonzero(prediction.segmentation) * 0.008
    assert prediction.scores["segmented_ml"] == pytest.approx(ml)
    assert prediction.scores["brain_ml"] == pytest.approx(np.count_nonzero(scan.mask.data) * 0.008)


def test_the_reconstruction_is_in_the_scans_intensities(scan: Scan, prediction: Prediction, monkeypatch) -> None:
    low, high = prediction.intensities
    brain = scan.mask.data > 0
    assert low < np.median(scan.image.data[brain]) < high
    monkeypatch.setattr(
        "cddpm.reconstruct.predict.predict_volumes", lambda model, requests, *_: map(_perfect, requests)
    )
    package = Package(scan.image.path, "x", {}, EXPERIMENT, _pipeline(guidance_scale=1.0))
    perfect = _without_network(package).predict_scan(scan.image, scan.mask)
    seen = brain & (perfect.reconstruction > 0)  # the field of view ends below and above
    # what is left of the scan at the model's resolution
    wanted = ndimage.gaussian_filter(np.clip(scan.image.data, low, high), 1.5)[seen]
    found = ndimage.gaussian_filter(perfect.reconstruction, 1.0)[seen]
    slope, offset = np.polyfit(wanted, found, 1)
    assert slope == pytest.approx(1, abs=0.1)
    assert offset == pytest.approx(0, abs=0.1 * (high - low))
    assert perfect.scores["anomaly_maximum"] == 0


def _pipeline(**changes) -> Pipeline:
    return Pipeline(scoring=SCORING.model_copy(update=changes), thresholds={"all": 0.1})


def _without_network(package: Package) -> Predictor:
    predictor = object.__new__(Predictor)
    predictor.package, predictor.device, predictor.window = package, torch.device("cpu"), "package"
    predictor._model, predictor._guide = torch.nn.Identity(), None
    return predictor


def _perfect(request):
    return request, {("c", *step): request.slices.astype(np.float32) for step in request.wanted}


@pytest.mark.parametrize(("axes", "flips"), [((0, 1, 2), (0,)), ((0, 1, 2), (0, 1)), ((2, 0, 1), (1,))])
def test_turning_the_file_turns_the_results(predictor, scan: Scan, prediction: Prediction, axes, flips) -> None:
    other = predictor.predict_scan(turned(scan.image, axes, flips), turned(scan.mask, axes, flips), KEY)
    for name in ("anomaly_map", "reconstruction", "segmentation"):
        np.testing.assert_array_equal(getattr(other, name), turned_array(getattr(prediction, name), axes, flips))


def test_units_of_intensity_do_not_matter(predictor: Predictor, scan: Scan, prediction: Prediction) -> None:
    scaled = dataclasses.replace(scan.image, data=scan.image.data * np.float32(4))
    other = predictor.predict_scan(scaled, scan.mask, KEY)
    np.testing.assert_allclose(other.anomaly_map, prediction.anomaly_map, atol=0.01)
    np.testing.assert_allclose(other.reconstruction, 4 * prediction.reconstruction, rtol=0.02, atol=4 * 20)


def test_another_voxel_size_is_resampled_and_told(predictor: Predictor, scan: Scan, prediction: Prediction) -> None:
    fine = [Volume(v.data.repeat(2, 2), _halved(v.affine), v.path) for v in (scan.image, scan.mask)]
    other = predictor.predict_scan(fine[0], fine[1], KEY)
    assert other.anomaly_map.shape == fine[0].data.shape
    assert any("voxels of 2.00 x 2.00 x 1.00 mm were resampled to 2.00" in w for w in other.warnings)
    together = other.segmentation & prediction.segmentation.repeat(2, 2)
    assert 2 * together.sum() / (other.segmentation.sum() + 2 * prediction.segmentation.sum()) > 0.5


def _halved(affine: np.ndarray) -> np.ndarray:
    fine = affine.copy()
    fine[:3, 2] /= 2
    fine[:3, 3] -= fine[:3, 2] / 2
    return fine


def test_of_a_usual_scan_only_the_narrow_field_of_view_is_told(prediction: Prediction) -> None:
    (warning,) = prediction.warnings
    assert "2% of the brain lies outside of the model's field of view" in warning


def test_too_much_above_the_threshold_is_told(predictor: Predictor, package: Package, scan: Scan, monkeypatch) -> None:
    low = package.pipeline.model_copy(update={"thresholds": {"all": 0.01}})
    monkeypatch.setattr(predictor, "package", dataclasses.replace(package, pipeline=low))
    assert any(
        "of the brain is above the threshold" in w for w in predictor.predict_scan(scan.image, scan.mask).warnings
    )


def test_without_mask_one_is_estimated_and_told(predictor: Predictor, scan: Scan, prediction: Prediction) -> None:
    other = predictor.predict_scan(scan.image, None, KEY)
    assert any("no brain mask given; estimated from all voxels that are not 0" in w for w in other.warnings)
    np.testing.assert_array_equal(other.segmentation, prediction.segmentation)  # the phantom is 0 outside of its mask


def test_another_contrast_is_told(predictor: Predictor, tmp_path) -> None:
    t1 = make_scan(tmp_path, "t1")
    assert any("unusual for T2" in w for w in predictor.predict_scan(t1.image, t1.mask).warnings)


def test_a_speck_of_a_mask_is_refused(predictor: Predictor, scan: Scan) -> None:
    speck = np.zeros_like(scan.mask.data)
    speck[48, 50, 30:32] = 1
    with pytest.raises(VolumeError, match=r"patient\.nii\.gz"):
        predictor.predict_scan(scan.image, dataclasses.replace(scan.mask, data=speck))


def test_the_data_set_chooses_the_threshold(predictor: Predictor, scan: Scan, prediction: Prediction) -> None:
    higher = predictor.predict_scan(scan.image, scan.mask, KEY, "Brats21")
    assert (prediction.threshold, higher.threshold) == (0.33, 0.36)
    assert higher.segmentation.sum() < prediction.segmentation.sum()
    with pytest.raises(ConfigError, match=r"'MSLUB'.*there are Brats21, all"):
        predictor.predict_scan(scan.image, scan.mask, KEY, "MSLUB")


def test_weights_of_another_network_are_refused(package: Package) -> None:
    lacking = dict(list(package.weights.items())[1:])
    with pytest.raises(ArtifactError, match="another architecture: missing"):
        Predictor(dataclasses.replace(package, weights=lacking))
    wider = EXPERIMENT.model_copy(update={"model": EXPERIMENT.model.model_copy(update={"base_width": 64})})
    with pytest.raises(ArtifactError, match=r"model\.safetensors.*another architecture"):
        Predictor(dataclasses.replace(package, config=wider))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int32])
def test_weights_of_another_type_are_refused(package: Package, dtype: torch.dtype) -> None:
    name, tensor = next((n, t) for n, t in package.weights.items() if t.dtype == torch.float32)
    with pytest.raises(ArtifactError, match=rf"{name} is {dtype}, needed torch.float32"):
        Predictor(dataclasses.replace(package, weights={**package.weights, name: tensor.to(dtype)}))


def test_a_network_that_explodes_is_refused(package: Package, scan: Scan) -> None:
    weights = {name: t * 1e6 if t.is_floating_point() else t for name, t in package.weights.items()}
    with pytest.raises(CddpmError, match="infinite or NaN"):
        Predictor(dataclasses.replace(package, weights=weights)).predict_scan(scan.image, scan.mask)


def test_pictures_show_the_most_segmented_slice_first(prediction: Prediction) -> None:
    rows = overview_rows(prediction)
    first = rows[0].slice
    assert first is not None
    assert prediction.working.segmentation[first].sum() == prediction.working.segmentation.sum((1, 2)).max()
    assert all(row.truth is None for row in rows)


def test_settings(predictor: Predictor) -> None:
    assert predictor.settings["scoring"]["guidance_scale"] == 1.5
    assert predictor.settings["data"]["data_dir"] is None


@pytest.mark.parametrize("asked", ["auto", "float32", "bfloat16"])
def test_a_model_of_another_machine_computes_in_what_this_one_can(asked: str, package: Package) -> None:
    config = with_values(package.config, {"reconstruction.precision": asked}, "test")
    predictor, native = Predictor(dataclasses.replace(package, config=config)), hardware("cpu").bfloat16
    wanted = "bfloat16" if native and asked != "float32" else "float32"
    assert predictor.config.reconstruction.precision == predictor.settings["reconstruction"]["precision"] == wanted
    told = [line for line in predictor._here[1] if "computed in float32: the model was chosen in bfloat16" in line]
    assert len(told) == (asked == "bfloat16" and not native)
