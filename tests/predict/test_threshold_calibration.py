"""A threshold from healthy scans: the operating point ``healthy-fpr``, told with how sure it is, kept and taken again."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_package import QUICK, SCORING, Scan, make_package

from cddpm.errors import ArtifactError, ConfigError, DataError
from cddpm.predict import threshold_calibration
from cddpm.predict.predictor import BrainScores, Predictor
from cddpm.predict.scans import Job
from cddpm.predict.threshold_calibration import FEWEST_ABOVE, Measured, ThresholdCalibration
from cddpm.reconstruct.reconstruction import Reconstruction
from cddpm.scoring import operating_point
from cddpm.scoring.score import Scorer
from cddpm.tracking.package import Package

RATE = 0.02


@pytest.fixture(scope="module")
def package(quick_package: Package) -> Package:
    return quick_package


@pytest.fixture(scope="module")
def predictor(package: Package) -> Predictor:
    return Predictor(package)


def jobs(scans: Sequence[Scan]) -> list[Job]:
    return [Job(scan.image.path, Path("unused"), scan.mask.path) for scan in scans]


@pytest.fixture(scope="module")
def measured(predictor: Predictor, healthy: list[Scan]) -> list[Measured]:
    return list(threshold_calibration.measure(predictor, jobs(healthy)))


@pytest.fixture(scope="module")
def calibration(package: Package, measured: list[Measured]) -> ThresholdCalibration:
    return threshold_calibration.calibrate(package, measured, RATE, {"package": "here"}, "cpu")


class Several:
    """The scans of some predictors' scorers as one store."""

    def __init__(self, scorers: Sequence[Scorer]) -> None:
        self.parts: list[Any] = [scorer.store for scorer in scorers]

    @property
    def volumes(self) -> list[Any]:
        return [part.volumes[0] for part in self.parts]

    def image(self, v: int) -> Any:
        return self.parts[v].image(0)

    def mask(self, v: int) -> Any:
        return self.parts[v].mask(0)

    def segmentation(self, v: int) -> Any:
        return self.parts[v].segmentation(0)

    def ignored(self, v: int) -> np.ndarray:
        return np.empty(0, np.int64)


@pytest.mark.slow
def test_it_is_what_the_scorer_finds_on_the_same_scans(
    predictor: Predictor, healthy: list[Scan], calibration: ThresholdCalibration
) -> None:
    """Equal bit for bit: threshold, brain voxels, and the rates of what is segmented."""
    scorers = [
        predictor._scorer(predictor._prepared(scan.image, scan.mask)[1], job.key)
        for scan, job in zip(healthy, jobs(healthy), strict=True)
    ]
    together = Reconstruction.joined([scorer._ensemble.cache for scorer in scorers])
    scorer = Scorer(Several(scorers), together, {}, range(len(healthy)))
    scoring = SCORING.model_copy(update={"operating_point": "healthy-fpr", "healthy_false_positive_rate": RATE})
    assert calibration.threshold == scorer.thresholds(scoring)["all"]
    assert calibration.threshold > 0
    rows = scorer.rows(scoring, {"all": calibration.threshold}, [])
    assert [scan.after_component_filter for scan in calibration.scans] == [row["false_positive_rate"] for row in rows]
    assert [scan.volume_id for scan in calibration.scans] == [row["volume"] for row in rows]
    assert [scan.brain_voxels for scan in calibration.scans] == [case.brain.size for case in scorer.cases("healthy")]


@pytest.mark.slow
def test_predictions_with_it_segment_what_it_says(
    package: Package, predictor: Predictor, healthy: list[Scan], calibration: ThresholdCalibration
) -> None:
    own = Predictor(threshold_calibration.applied(package, calibration))
    assert calibration.threshold != 0.33
    for scan, expected in zip(healthy, calibration.scans, strict=True):
        working = own.predict_scan(scan.image, scan.mask).working
        brain = predictor._prepared(scan.image, scan.mask)[1].mask.transpose(2, 0, 1) > 0
        assert np.count_nonzero(working.segmentation & brain) / brain.sum() == expected.after_component_filter
        assert np.count_nonzero((working.anomaly_map > calibration.threshold) & brain) / brain.sum() == (
            expected.false_positive_rate
        )


@pytest.mark.slow
def test_rates_are_those_of_all_voxels(calibration: ThresholdCalibration) -> None:
    weights = [scan.brain_voxels for scan in calibration.scans]
    assert calibration.brain_voxels == sum(weights)
    assert 0 < calibration.false_positive_rate <= RATE
    pooled = np.average([scan.false_positive_rate for scan in calibration.scans], weights=weights)
    assert calibration.false_positive_rate == pytest.approx(pooled, rel=1e-12)
    assert calibration.after_component_filter <= calibration.false_positive_rate


# the arithmetic, on made-up maps


def scored(scores: Sequence[float], name: str = "a") -> Measured:
    """A scan of so many brain voxels in a row."""
    map_ = np.array(scores, np.float16)[None, None]
    brain_scores = BrainScores(map_, np.ones(map_.shape, bool), ())
    return Measured(Job(Path(f"{name}.nii"), Path("unused")), brain_scores, name)


def found(package: Package, measured: Sequence[Measured], rate: float) -> ThresholdCalibration:
    return threshold_calibration.calibrate(package, measured, rate, {}, "cpu")


def test_a_hand_worked_threshold(package: Package) -> None:
    """Of 1..100 and 101..200 a tenth lies above 180; without the second it lies above 90, without the first above 190."""
    low, high = scored(range(1, 101), "low"), scored(range(101, 201), "high")
    calibration = found(package, [low, high], 0.1)
    assert (calibration.threshold, calibration.false_positive_rate, calibration.brain_voxels) == (180, 0.1, 200)
    assert [scan.false_positive_rate for scan in calibration.scans] == [0, 0.2]
    assert [(one.threshold, one.false_positive_rate) for one in calibration.left_out] == [(190, 0), (90, 1)]


MAPS = st.lists(st.lists(st.integers(0, 30), min_size=40, max_size=80), min_size=1, max_size=4)


@pytest.mark.slow
@given(MAPS, st.floats(0.25, 0.75))
def test_it_is_the_operating_point_and_each_scan_left_out_has_that_of_the_others(
    maps: list[list[int]], rate: float
) -> None:
    histograms = [operating_point.histogram(np.array(m, np.float16), np.empty(0, np.int64)) for m in maps]
    threshold = operating_point.quantile_threshold(histograms, rate)
    above = [sum(score > threshold for score in m) for m in maps]
    assert [operating_point.voxels_above(h, threshold) for h in histograms] == above
    assert sum(above) <= rate * sum(map(len, maps))
    for number, (one, left_out) in enumerate(zip(maps, threshold_calibration._left_out(histograms, rate), strict=True)):
        others = histograms[:number] + histograms[number + 1 :]
        if not others:
            assert left_out is None
            continue
        assert left_out is not None
        assert left_out.threshold == operating_point.quantile_threshold(others, rate)
        assert left_out.false_positive_rate == sum(score > left_out.threshold for score in one) / len(one)


@pytest.mark.slow
@given(MAPS)
def test_a_lower_rate_is_a_higher_threshold(maps: list[list[int]]) -> None:
    histograms = [operating_point.histogram(np.array(m, np.float16), np.empty(0, np.int64)) for m in maps]
    thresholds = [operating_point.quantile_threshold(histograms, rate) for rate in (0.1, 0.3, 0.6)]
    assert thresholds == sorted(thresholds, reverse=True)


def test_one_scan_has_no_others(package: Package) -> None:
    calibration = found(package, [scored(range(100))], 0.1)
    assert calibration.left_out == ()
    assert calibration.scans[0].left_out is None


@pytest.mark.parametrize("rate", [0, 1, -0.1, 1.5, float("nan")])
def test_a_rate_is_a_fraction(package: Package, rate: float) -> None:
    with pytest.raises(ConfigError, match=r"--fpr .*: allowed is more than 0 and less than 1"):
        found(package, [scored(range(100))], rate)


def test_too_few_voxels_are_told_with_what_would_be_enough(package: Package) -> None:
    with pytest.raises(DataError, match=r"--fpr 0\.01 of 300 brain voxels in 1 scans is 3 voxels; at least 10") as told:
        found(package, [scored(range(300))], 0.01)
    enough = float(str(told.value).split("a rate of ")[1].split()[0])
    assert enough * 300 >= FEWEST_ABOVE
    assert found(package, [scored(range(300))], enough).healthy_false_positive_rate == enough


def test_without_a_usable_scan_there_is_no_threshold(package: Package) -> None:
    with pytest.raises(DataError, match="none of 1 healthy scans can be used"):
        found(package, [Measured(Job(Path("a.nii"), Path()), error="a.nii: no such file")], 0.1)


# scans that cannot be used


@pytest.mark.slow
def test_bad_scans_are_told_and_the_others_go_on(
    predictor: Predictor, healthy: list[Scan], tmp_path: Path, package: Package, measured: list[Measured]
) -> None:
    cut, copy = tmp_path / "cut.nii.gz", tmp_path / "copy.nii.gz"
    cut.write_bytes(healthy[0].image.path.read_bytes()[:5000])
    copy.write_bytes(healthy[0].image.path.read_bytes())
    first, *_ = jobs(healthy)
    asked = [Job(cut, tmp_path), first, Job(tmp_path / "absent.nii", tmp_path), Job(copy, tmp_path, first.mask)]
    bad, good, absent, again = threshold_calibration.measure(predictor, asked)
    assert bad.error is not None
    assert bad.error.startswith(f"{cut}: gzip stream cut")
    assert absent.error is not None
    assert "no such file" in absent.error
    assert again.error == f"{copy}: the same scan as {first.scan}; it counts once"
    assert good.scores is not None
    assert measured[0].scores is not None
    np.testing.assert_array_equal(good.scores.anomaly_map, measured[0].scores.anomaly_map)
    calibration = found(package, [bad, good, absent, again], RATE)
    assert len(calibration.scans) == 1
    assert calibration.unused == (bad.error, absent.error, again.error)


@pytest.mark.slow
def test_without_a_mask_one_is_estimated_with_a_warning(predictor: Predictor, healthy: list[Scan]) -> None:
    scores = predictor.brain_scores(healthy[0].image)
    assert any("no brain mask given" in warning for warning in scores.warnings)


# the file


@pytest.mark.slow
def test_a_file_gives_back_what_was_written(
    calibration: ThresholdCalibration, package: Package, tmp_path: Path
) -> None:
    threshold_calibration.write(tmp_path / "c.json", calibration)
    again = threshold_calibration.read(tmp_path / "c.json")
    assert again == calibration
    threshold_calibration.check_belongs(again, package, "c.json")
    threshold_calibration.check_free(tmp_path / "c.json", package)
    raw = json.loads((tmp_path / "c.json").read_text())
    assert raw["threshold"] == calibration.threshold
    assert raw["model"]["package"] == package.fingerprint


def with_other_weights(package: Package) -> Package:
    first = next(iter(package.weights))
    return replace(package, weights={**package.weights, first: package.weights[first] + 1})


def with_other_settings(package: Package) -> Package:
    scoring = package.pipeline.scoring.model_copy(update={"median_kernel": 5})
    return replace(package, pipeline=package.pipeline.model_copy(update={"scoring": scoring}))


def with_other_network(package: Package) -> Package:
    diffusion = package.config.diffusion.model_copy(update={"schedule": "linear"})
    return replace(package, config=package.config.model_copy(update={"diffusion": diffusion}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (with_other_weights, r"was made for other weights \([0-9a-f]{16}, these are [0-9a-f]{16}\)"),
        (with_other_settings, r"was made with other settings of the model \(scoring\.median_kernel\)"),
        (with_other_network, r"was made with other settings of the model \(those of the network\)"),
    ],
)
def test_another_model_is_refused(
    change: Any, told: str, calibration: ThresholdCalibration, package: Package, tmp_path: Path
) -> None:
    other = change(package)
    with pytest.raises(ConfigError, match=rf"^c\.json: {told}; calibrate .*cddpm registry calibrate"):
        threshold_calibration.check_belongs(calibration, other, "c.json")
    threshold_calibration.write(tmp_path / "c.json", calibration)
    with pytest.raises(ConfigError, match=r"c\.json is not replaced; name another file"):
        threshold_calibration.check_free(tmp_path / "c.json", other)


@pytest.mark.slow
def test_the_same_model_packaged_with_other_thresholds_takes_it(
    calibration: ThresholdCalibration, package: Package
) -> None:
    pipeline = package.pipeline.model_copy(update={"thresholds": {"all": 0.9}, "validation": {"val/dice": 0.1}})
    other = replace(package, pipeline=pipeline, fingerprint="another")
    threshold_calibration.check_belongs(calibration, other, "c.json")
    own = threshold_calibration.applied(other, calibration)
    assert own.pipeline.thresholds == {"all": calibration.threshold}
    assert own.pipeline.validation == {}  # measured at another threshold
    assert own.fingerprint != other.fingerprint


def damaged(folder: Path, calibration: ThresholdCalibration) -> Iterator[tuple[Path, str]]:
    threshold_calibration.write(folder / "c.json", calibration)
    raw = json.loads((folder / "c.json").read_text())
    for name, value, told in (
        ("threshold", -1, "threshold: Input should be greater than or equal to 0"),
        ("threshold", "much", "threshold: Input should be a valid number"),
        ("scans", [], "scans: Tuple should have at least 1 item"),
        ("format", 2, "format: Input should be 1"),
        ("extra", 0, "extra: Extra inputs"),
    ):
        (folder / f"{name}.json").write_text(json.dumps({**raw, name: value}))
        yield folder / f"{name}.json", told
    (folder / "text.json").write_text("{")
    yield folder / "text.json", "not a calibration of this program"
    yield folder / "absent.json", "missing; 'cddpm registry calibrate' makes one"


@pytest.mark.slow
def test_what_is_no_calibration_is_refused(calibration: ThresholdCalibration, package: Package, tmp_path: Path) -> None:
    for path, told in damaged(tmp_path, calibration):
        with pytest.raises(ArtifactError, match=rf"{path.name}: .*{told}"):
            threshold_calibration.read(path)
        if path.exists():
            with pytest.raises(ConfigError, match="is not replaced; name another file"):
                threshold_calibration.check_free(path, package)


@pytest.mark.slow
def test_weights_decide_not_where_they_lie(package: Package, calibration: ThresholdCalibration, tmp_path: Path) -> None:
    threshold_calibration.check_belongs(calibration, make_package(tmp_path / "elsewhere", QUICK), "c.json")


@pytest.mark.slow
def test_a_map_that_scores_beside_the_brain_is_kept_whole(predictor: Predictor, healthy: list[Scan]) -> None:
    """The median filter reaches beyond the mask; what is cut off for want of room must not change a component."""
    scan = healthy[0]
    scores = predictor.brain_scores(scan.image, scan.mask)
    working = predictor.predict_scan(scan.image, scan.mask).working
    assert np.count_nonzero(scores.anomaly_map) == np.count_nonzero(working.anomaly_map)
