"""Figures of a scan's quality: each rises with what it is named after, by as much, and a planted oddity stands out."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cddpm.config import DataConfig
from cddpm.data import geometry, quality
from cddpm.data.check import Reading
from cddpm.data.layout import ScanRow
from cddpm.data.outlier import FEWEST, Judged, histogram_distances, judge, robust_z
from cddpm.data.phantom.subject import Subject, draw
from cddpm.data.quality import FIGURES, Measured, measure
from cddpm.data.volume import Volume

ROW = ScanRow("IXI", "s", "train", None, 0, None, Path("s.nii.gz"), Path("m.nii.gz"), None, "t:1")
DATA = DataConfig(voxel_size_mm=2.0, volume_shape=(96, 96, 80))
GROUP = ("IXI", "t2")
Scan = tuple[Volume, Volume]


def drawn(index: int) -> dict[str, Scan]:
    """A phantom's scans of 2 mm by contrast, with their mask."""
    subject = Subject(0, "IXI", index, 2.0)
    found = draw(subject)
    mask = Volume(found.mask, subject.affine, ROW.mask)
    return {c: (Volume(a.astype(np.float32), subject.affine, ROW.image), mask) for c, a in found.scans.items()}


@pytest.fixture(scope="module")
def heads() -> list[dict[str, Scan]]:
    return [drawn(index) for index in range(FEWEST + 1)]


@pytest.fixture(scope="module")
def others(heads: list[dict[str, Scan]]) -> list[Measured]:
    """T2 scans of all but the first."""
    return [measured(*head["t2"]) for head in heads[1:]]


def measured(image: Volume, mask: Volume) -> Measured:
    way = geometry.plan(image, DATA, mask.data > 0)
    found = measure(Reading(ROW, (), image, mask, None, way, None))
    assert found is not None
    return found


def figures(image: Volume, mask: Volume) -> dict[str, float]:
    return {key: value for key, value in measured(image, mask).figures.items() if value is not None}


def noisy(scan: Scan, part: float) -> Scan:
    """With noise of so much of the brain's median intensity."""
    image, mask = scan
    sigma = part * float(np.median(image.data[mask.data > 0]))
    data = image.data + np.random.default_rng(0).normal(0, sigma, image.data.shape).astype(np.float32)
    return replace(image, data=np.where(mask.data > 0, data, image.data)), mask


def biased(scan: Scan, strength: float) -> Scan:
    """Brighter on one side and in front."""
    image, mask = scan
    return replace(image, data=image.data * np.exp(strength * field(image))), mask


def field(image: Volume) -> npt.NDArray[np.float32]:
    x, y, _ = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in image.data.shape), indexing="ij")
    return np.asarray(x + 0.5 * y**2)


def coarser(scan: Scan, factor: float) -> Scan:
    """With a header that says so much larger voxels."""
    affine = scan[0].affine @ np.diag([factor, factor, factor, 1])
    return replace(scan[0], affine=affine), replace(scan[1], affine=affine)


def grown(scan: Scan) -> Scan:
    image, mask = scan
    return image, replace(mask, data=ndimage.binary_dilation(mask.data, iterations=4).astype(np.uint8))


def shrunk(scan: Scan) -> Scan:
    image, mask = scan
    return image, replace(mask, data=ndimage.binary_erosion(mask.data, iterations=4).astype(np.uint8))


@pytest.mark.slow
def test_noise_adds_up_in_squares(heads: list[dict[str, Scan]]) -> None:
    before = figures(*heads[0]["t2"])["noise"]
    for part in (0.1, 0.2):
        assert figures(*noisy(heads[0]["t2"], part))["noise"] == pytest.approx(np.hypot(before, part), rel=0.1)


@pytest.mark.slow
def test_a_field_adds_up_in_squares(heads: list[dict[str, Scan]]) -> None:
    """Of a field and its inverse, as the head has one of its own: |a + b|^2 + |a - b|^2 = 2 |a|^2 + 2 |b|^2."""
    image, mask = scan = heads[0]["t1"]
    before, own = figures(*scan)["bias"], 0.3 * float(field(image)[mask.data > 0].std())
    there, back = (figures(*biased(scan, strength))["bias"] for strength in (0.3, -0.3))
    assert there**2 + back**2 == pytest.approx(2 * before**2 + 2 * own**2, rel=0.03)


@pytest.mark.slow
@settings(max_examples=3, deadline=None)
@given(scale=st.floats(0.01, 100), offset=st.floats(-500, 500))
def test_scale_and_offset_change_nothing(heads: list[dict[str, Scan]], scale: float, offset: float) -> None:
    image, mask = heads[1]["t2"]
    before = figures(image, mask)
    after = figures(replace(image, data=np.float32(scale) * image.data + np.float32(scale * offset)), mask)
    assert after == pytest.approx(before, rel=0.02, abs=0.002)


@pytest.mark.slow
def test_larger_voxels_make_a_larger_brain(heads: list[dict[str, Scan]]) -> None:
    for factor in (0.8, 1.25):
        now, before = figures(*coarser(heads[0]["t2"], factor)), figures(*heads[0]["t2"])
        assert now["brain_ml"] == pytest.approx(before["brain_ml"] * factor**3)
        assert now["noise"] == before["noise"]


@pytest.mark.slow
def test_a_mask_that_does_not_fit(heads: list[dict[str, Scan]]) -> None:
    before, wide, narrow = (figures(*change(heads[0]["t2"])) for change in (lambda scan: scan, grown, shrunk))
    assert wide["dark_surface"] > 0.9 > 0.1 > before["dark_surface"]
    assert narrow["signal_outside"] > 0.1 > before["signal_outside"]


@pytest.mark.slow
def test_a_field_of_view_that_cuts(heads: list[dict[str, Scan]]) -> None:
    image, mask = heads[0]["t2"]
    tight = DataConfig(voxel_size_mm=2.0, volume_shape=(96, 96, 20))
    reading = Reading(ROW, (), image, mask, None, geometry.plan(image, tight, mask.data > 0), None)
    found = measure(reading)
    assert found is not None
    assert (found.figures["cut"] or 0) > 0.2 > 0.01 > figures(image, mask)["cut"]


@pytest.mark.slow
def test_lesions_are_counted(heads: list[dict[str, Scan]]) -> None:
    image, mask = heads[0]["t2"]
    lesion = np.zeros_like(mask.data)
    lesion[30:33, 40:44, 30:32] = 1
    lesion[33, 44, 32] = 1  # touches by its corner
    lesion[50, 50, 30] = 1
    lesion[51, 50, 30] = 2  # counts neither way
    found = measure(Reading(ROW, (), image, mask, replace(mask, data=lesion), None, None))
    assert found is not None
    assert found.figures["lesions"] == 2
    assert found.figures["lesion_ml"] == pytest.approx(26 * 8 / 1000)


@pytest.mark.slow
def test_what_cannot_be_measured_is_not(heads: list[dict[str, Scan]]) -> None:
    image, mask = heads[0]["t2"]
    assert measure(Reading(ROW, (), image, None, None, None, None)) is None
    assert measure(Reading(ROW, (), image, replace(mask, data=mask.data[1:]), None, None, None)) is None
    few = np.zeros_like(mask.data)
    few[40:43, 40:43, 40:43] = 1
    assert not {"noise", "bias"} & set(figures(image, replace(mask, data=few)))


PLANTED = {
    "noise": lambda head: noisy(head["t2"], 0.3),
    "bias": lambda head: biased(head["t2"], 0.5),
    "brain_ml": lambda head: coarser(head["t2"], 1.4),
    "contrast": lambda head: head["t1"],
    "dark_surface": lambda head: grown(head["t2"]),
    "signal_outside": lambda head: shrunk(head["t2"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("key", PLANTED)
def test_a_planted_oddity_comes_first_and_says_what_it_is(
    heads: list[dict[str, Scan]], others: list[Measured], key: str
) -> None:
    found = ranked([measured(*PLANTED[key](heads[0])), *others])
    assert max(found, key=lambda one: one.score) is found[0]
    name = next(figure.name for figure in FIGURES if figure.key == key)
    assert any(reason.startswith(f"{name} ") for reason in found[0].reasons(FIGURES))


def ranked(scans: list[Measured]) -> list[Judged]:
    return judge([(GROUP, scan, {}) for scan in scans])


@pytest.mark.slow
def test_another_modality_has_another_histogram(heads: list[dict[str, Scan]], others: list[Measured]) -> None:
    scans = [measured(*heads[0]["t1"]), *others]
    first, *rest = [distance or 0.0 for distance in histogram_distances(scans)]
    assert first > 2 * max(rest)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=FEWEST, max_size=40), st.floats(0.1, 100), st.floats(-1e3, 1e3))
def test_robust_z(values: list[float], scale: float, offset: float) -> None:
    array = np.array(values)
    z = robust_z(array, 1e-3)
    assert np.median(z) == pytest.approx(0, abs=1e-6)
    assert np.allclose(robust_z(scale * array + offset, scale * 1e-3), z, rtol=1e-4, atol=1e-3)
    assert (np.diff(z[np.argsort(array)]) >= 0).all()


def test_robust_z_of_normal_numbers_is_their_own() -> None:
    values = np.random.default_rng(0).normal(5, 2, 20_000)
    assert robust_z(values, 0)[:50] == pytest.approx((values[:50] - 5) / 2, abs=0.1)


def test_small_differences_among_equal_values_are_none() -> None:
    values = np.array([0.0] * 20 + [0.004, 0.4])
    assert robust_z(values, 0.005)[-2:] == pytest.approx([0.8, 80])


@pytest.mark.slow
def test_groups_are_judged_by_themselves_and_few_are_not(heads: list[dict[str, Scan]]) -> None:
    one = measured(*heads[0]["t2"])

    def with_noise(value: float) -> Measured:
        return replace(one, figures={**one.figures, "noise": value})

    groups = [(("A", "t2"), 0.1)] * FEWEST + [(("B", "t2"), 0.9)] * FEWEST + [(("C", "t2"), 5.0)] * (FEWEST - 1)
    found = judge([(group, with_noise(value), {"similarity": value}) for group, value in groups], quality.FIGURES)
    assert {one.score for one in found} == {0.0}
    assert [one.values["noise"].usual for one in found[::FEWEST]] == [0.1, 0.9, None]
    assert found[-1].values["noise"].value == 5.0
    assert found[-1].values["noise"].z is None
