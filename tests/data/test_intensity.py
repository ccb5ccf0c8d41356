"""Laws of the ways to bring a scan's intensities to [0, 1], and TorchIO's histogram standardisation beside ours."""

from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
import torchio as tio
from hypothesis import given, settings
from hypothesis import strategies as st

from cddpm.config import DataConfig, ScannerChange
from cddpm.data.intensity import (
    FlatBrainError,
    IntensityMap,
    histogram_peak,
    intensity_map,
    learnt_landmarks,
    quantiles,
    white_stripe,
)
from cddpm.data.prepare import brain_quantiles, prepare
from cddpm.data.scanner import BIAS, as_scanned, bias_field
from cddpm.data.store import _settings
from cddpm.data.volume import Volume, VolumeFileError, write_volume
from cddpm.errors import DataError

LANDMARKS = (0.0, 0.1, 0.22, 0.3, 0.41, 0.5, 0.58, 0.7, 0.8, 0.9, 1.0)
OPTIONS: dict[str, dict[str, Any]] = {
    "percentiles": {},
    "landmarks": {"landmarks": LANDMARKS},
    "white-stripe": {},
    "z-score": {},
}
SMALL = DataConfig(volume_shape=(32, 32, 20), smoothing_iterations=0)
SEEDS = st.integers(0, 10_000)
quickly = settings(max_examples=25, deadline=None)
seldom = settings(max_examples=6, deadline=None)
"""Where each example prepares a scan."""
every_option = pytest.mark.parametrize("option", OPTIONS)


def with_option(option: str, data: DataConfig = SMALL, **more: Any) -> DataConfig:
    return DataConfig.model_validate({**data.model_dump(), "intensities": option, **OPTIONS[option], **more})


def brain(seed: int, count: int = 4000) -> npt.NDArray[np.float32]:
    """Three tissues, as many voxels of each as the seed says."""
    random = np.random.default_rng(seed)
    parts = random.dirichlet((8, 8, 4))
    tissue = random.choice(3, count, p=parts)
    return (np.array([300.0, 520.0, 820.0])[tissue] + random.normal(0, 40, count)).astype(np.float32)


def head(seed: int = 3) -> tuple[Volume, Volume]:
    """A ball of three shells, and its mask."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in (32, 32, 20)), indexing="ij")
    radius = np.sqrt(sum(a**2 for a in axes))
    noise = np.random.default_rng(seed).normal(0, 25, radius.shape)
    image = np.select([radius < 0.4, radius < 0.6, radius < 0.85], [300.0, 520.0, 820.0]) + noise
    inside, affine = radius < 0.85, np.diag([-1.0, -1.0, 1.0, 1.0])
    image = np.where(inside, image, 0).astype(np.float32)
    return Volume(image, affine, Path("head.nii")), Volume(inside.astype(np.uint8), affine, Path("mask.nii"))


@every_option
@quickly
@given(SEEDS, st.floats(0.01, 100), st.floats(-1000, 1000))
def test_offset_and_scale_of_a_scan_change_nothing(option: str, seed: int, scale: float, offset: float) -> None:
    data, values = with_option(option), brain(seed).astype(np.float64)
    other = values * scale + offset
    np.testing.assert_allclose(intensity_map(other, data)(other), intensity_map(values, data)(values), atol=2e-5)


@every_option
def test_nor_do_they_in_the_prepared_image(option: str) -> None:
    image, mask = head()
    data = with_option(option, SMALL.model_copy(update={"smoothing_iterations": 3}))
    other = Volume(image.data * np.float32(0.25) + np.float32(64), image.affine, image.path)
    plain, moved = prepare(image, mask, None, data), prepare(other, mask, None, data)
    np.testing.assert_allclose(moved.image, plain.image, atol=1e-4)
    wanted = [0.25 * point + 64 for point in plain.mapping.points]
    assert moved.mapping.points == pytest.approx(wanted, rel=1e-4)


@every_option
@seldom
@given(SEEDS)
def test_nothing_outside_of_the_brain_changes_the_map(option: str, seed: int) -> None:
    image, mask = head()
    skull = np.random.default_rng(seed).uniform(0, 4000, image.data.shape).astype(np.float32)
    other = Volume(np.where(mask.data > 0, image.data, skull), image.affine, image.path)
    data = with_option(option)
    plain, with_skull = prepare(image, mask, None, data).mapping, prepare(other, mask, None, data).mapping
    assert with_skull.points == pytest.approx(plain.points, rel=1e-4)
    assert with_skull.values == plain.values


@every_option
def test_the_network_sees_0_to_1_and_a_dark_background(option: str) -> None:
    image, mask = head()
    done = prepare(image, mask, None, with_option(option, rescale_factor=1.0))
    assert (done.image.min(), done.image.max()) == (0, 1) or done.mapping.points[-1] > image.data.max()
    assert 0 <= done.image.min() < done.image.max() <= 1
    assert done.image.std() > 0.1
    assert not done.image[done.mask == 0].any()


@every_option
@quickly
@given(SEEDS)
def test_the_way_back(option: str, seed: int) -> None:
    values = brain(seed)
    mapping = intensity_map(values, with_option(option))
    inside = values[(values > mapping.points[0]) & (values < mapping.points[-1])]
    np.testing.assert_allclose(mapping.back(mapping(inside)), inside, rtol=2e-4)
    beyond = np.array([-0.1, 0.0, 1.0, 1.1])
    back = mapping.back(beyond)
    assert back[1:3] == pytest.approx([mapping.points[0], mapping.points[-1]])
    assert (np.diff(back) > 0).all()
    assert (mapping(back[[0, 3]].astype(np.float32)) == [0, 1]).all()


@quickly
@given(SEEDS)
def test_percentiles_give_every_bit_that_they_gave(seed: int) -> None:
    values, (low, high) = brain(seed), np.percentile(brain(seed), (1.0, 99.0))
    clipped = np.clip(values, low, high)
    wanted = ((clipped - clipped.min()) / (clipped.max() - clipped.min())).astype(np.float32)
    mapping = intensity_map(values, DataConfig())
    np.testing.assert_array_equal(mapping(values), wanted)
    assert mapping.points == (low, high)
    np.testing.assert_array_equal(mapping.back(wanted), float(low) + (float(high) - float(low)) * wanted)


def test_stores_of_percentiles_keep_their_names() -> None:
    known = {"modality", "orientation", "voxel_size_mm", "volume_shape", "centre", "rescale_factor", "rescale_grid"}
    assert _settings(DataConfig()).keys() == known | {"percentiles", "smoothing_iterations"}


@quickly
@given(SEEDS, st.floats(0.4, 2.5))
def test_landmarks_hardly_see_a_curve_that_rises(seed: int, power: float) -> None:
    """Between two landmarks a voxel stays between them; at a landmark nothing moves."""
    data, values = with_option("landmarks"), np.sort(brain(seed).astype(np.float64))
    curved = values**power
    plain, other = (intensity_map(v, data)(v) for v in (values, curved))
    assert np.abs(plain - other).max() <= np.diff(LANDMARKS).max()
    assert np.abs(plain - other).mean() < 0.03
    np.testing.assert_allclose(intensity_map(curved, data)(np.array(quantiles(curved, data))), LANDMARKS, atol=1e-6)


def test_landmarks_are_those_of_torchio(tmp_path: Path) -> None:
    heads = [head(seed) for seed in range(3)]
    data = with_option("landmarks", landmarks=None)
    files = []
    for index, (image, mask) in enumerate(heads):
        pair = [tmp_path / f"{name}{index}.nii.gz" for name in ("image", "mask")]
        for path, volume in zip(pair, (image, mask), strict=True):
            write_volume(path, volume.data, volume.affine)
        files.append(pair)
    images, masks = zip(*files, strict=True)
    theirs = tio.HistogramStandardization.train(list(images), mask_path=list(masks), progress=False)
    ours = learnt_landmarks([brain_quantiles(image, mask, data) for image, mask in heads])
    np.testing.assert_allclose(ours, np.delete(theirs, (3, 9)) / 100, atol=1e-5)  # it has quartiles too
    image, mask = heads[0]
    subject = tio.Subject(image=tio.ScalarImage(images[0]), mask=tio.LabelMap(masks[0]))
    wanted = tio.HistogramStandardization({"image": theirs}, masking_method="mask")(subject)["image"].numpy()[0] / 100
    found = prepare(image, mask, None, data.model_copy(update={"landmarks": ours, "rescale_factor": 1.0}))
    inside = mask.data > 0
    np.testing.assert_allclose(found.image[inside], np.clip(wanted[inside], 0, 1), atol=1e-4)


@quickly
@given(st.lists(SEEDS, min_size=2, max_size=8, unique=True), st.randoms())
def test_the_order_of_training_scans_changes_no_bit(seeds: list[int], random: Any) -> None:
    data = with_option("landmarks", landmarks=None)
    scans = [quantiles(brain(seed), data) for seed in seeds]
    first = learnt_landmarks(scans)
    random.shuffle(scans)
    assert learnt_landmarks(scans) == first
    assert (first[0], first[-1], len(first)) == (0.0, 1.0, 11)
    DataConfig(intensities="landmarks", landmarks=first)


def test_landmarks_that_fall_together_in_a_scan() -> None:
    values = np.repeat(np.float32([1, 5, 9]), (120, 261, 120))
    mapping = intensity_map(values, with_option("landmarks"))
    assert mapping.points == (1.0, 5.0, 9.0)
    assert 0 < mapping.values[1] < 1
    np.testing.assert_allclose(mapping.back(mapping(values)), values, rtol=1e-5)
    with pytest.raises(DataError, match="do not rise"):
        learnt_landmarks([quantiles(values, with_option("landmarks", landmarks=None))])


@pytest.mark.parametrize(("peak", "wanted"), [("first", 300), ("largest", 520), ("last", 820)])
@quickly
@given(seed=SEEDS)
def test_each_peak_is_found(peak: Any, wanted: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    tissues = [(300, 3000), (520, 5000), (820, 2600)]
    values = np.concatenate([random.normal(centre, 35, count) for centre, count in tissues])
    assert histogram_peak(values, peak) == pytest.approx(wanted, abs=12)
    mean, deviation = white_stripe(values, peak)
    assert mean == pytest.approx(wanted, abs=12)
    assert 3 < deviation < 35  # a tenth of the brain, a part of the tissue


def test_z_scores_by_hand() -> None:
    values = np.float32([1, 2, 3, 4, 5])
    mapping = intensity_map(values, with_option("z-score", standard_range=(-2.0, 2.0)))
    assert mapping.points == pytest.approx((3 - 2 * 2**0.5, 3 + 2 * 2**0.5))
    assert mapping(np.float32([3]))[0] == 0.5


@every_option
def test_a_brain_without_contrast_is_refused(option: str) -> None:
    with pytest.raises(FlatBrainError, match="intensity 7"):
        intensity_map(np.full(50, 7, np.float32), with_option(option))
    image, mask = head()
    flat = Volume(np.where(mask.data > 0, np.float32(7), np.float32(0)), image.affine, image.path)
    with pytest.raises(VolumeFileError, match=r"head\.nii.*a scan needs contrast inside its mask"):
        prepare(flat, mask, None, with_option(option))


def test_landmarks_that_nobody_learnt_are_refused() -> None:
    with pytest.raises(DataError, match=r"data\.landmarks: empty"):
        prepare(*head(), None, with_option("landmarks", landmarks=None))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"landmarks": LANDMARKS}, "landmarks: would be ignored by intensities 'percentiles'"),
        ({"intensities": "landmarks", "landmarks": (0.0, 1.0)}, "allowed are 11 numbers that rise from 0 to 1"),
        ({"intensities": "landmarks", "landmarks": LANDMARKS, "percentiles": (15, 99)}, "allowed are 10 numbers"),
        (
            {"intensities": "white-stripe", "modality": "dwi"},
            "'auto' knows that of t1, t2, flair, pd; modality is 'dwi'",
        ),
        ({"white_matter_peak": "last"}, "white_matter_peak: 'last' would be ignored by intensities 'percentiles'"),
        ({"standard_range": (-1, 1)}, "standard_range: would be ignored by intensities 'percentiles'"),
        ({"intensities": "z-score", "standard_range": (1, 1)}, "the first number must be below the second"),
    ],
)
def test_combinations_that_cannot_be(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        DataConfig.model_validate(wrong)


@quickly
@given(st.lists(st.floats(-50, 50), min_size=2, max_size=8, unique=True), st.floats(0.1, 9), st.floats(-9, 9))
def test_a_map_of_the_file_is_the_same_map(points: list[float], scale: float, offset: float) -> None:
    rising = tuple(sorted(points))
    mapping = IntensityMap(rising, tuple(np.linspace(0, 1, len(rising)).tolist()))
    inside = np.linspace(rising[0], rising[-1], 7)
    if min(np.diff(rising)) > 1e-3:
        found = mapping.of_file(scale, offset)(inside * scale + offset)
        np.testing.assert_allclose(found, mapping(inside), atol=1e-5)


@pytest.mark.parametrize("change", get_args(ScannerChange))
def test_another_scanner_changes_the_brain_alone_and_each_time_alike(change: ScannerChange) -> None:
    image, mask = head()
    found = as_scanned(image, mask, change, "A/1")
    np.testing.assert_array_equal(found.data, as_scanned(image, mask, change, "A/1").data)
    inside = mask.data > 0
    np.testing.assert_array_equal(found.data[~inside], image.data[~inside])
    ratio = np.corrcoef(found.data[inside], image.data[inside])[0, 1]
    assert 0.2 < ratio < 0.9999
    scaled = Volume(image.data * np.float32(4), image.affine, image.path)
    np.testing.assert_allclose(as_scanned(scaled, mask, change, "A/1").data, 4 * found.data, rtol=1e-3, atol=0.1)
    drawn = change in ("bias-field", "noise")
    assert drawn != np.array_equal(found.data, as_scanned(image, mask, change, "A/2").data)


@quickly
@given(SEEDS)
def test_bias_fields_are_smooth_and_of_the_strength_that_is_told(seed: int) -> None:
    field = bias_field((12, 10, 8), np.random.default_rng(seed))
    assert (field.min(), field.max()) == pytest.approx((np.exp(-BIAS), np.exp(BIAS)))
    assert max(np.abs(np.diff(np.log(field), axis=axis)).max() for axis in range(3)) < BIAS
