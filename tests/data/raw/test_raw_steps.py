"""The steps of preparation: each does what it says, all of them bring a distorted head back, twice the same bytes."""

import functools
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from heads import Whole, dice, error_mm, head_of, motion, phantom, real, scanned

from cddpm.config.preparation import PreparationConfig
from cddpm.data.raw.head import Figures, Grid, Head, Step
from cddpm.data.raw.lesions import labels_at
from cddpm.data.raw.resampling import Affine, lattice_of, linear, mask_at, moved
from cddpm.data.raw.steps import extractor_of, steps_of
from cddpm.data.volume import write_volume
from cddpm.errors import DataError

MOTION = motion(shear=0.05)
"""15 degrees, 20 mm, 10 %, and a shear."""


def done(steps: tuple[Step, ...], head: Head) -> tuple[dict[str, Head], dict[str, Figures]]:
    """Heads and figures after each step, by its name."""
    heads, figures = {}, {}
    for step in steps:
        head, figures[step.name] = step.run(head)
        heads[step.name] = head
    json.dumps([figures, [step.parameters for step in steps]], allow_nan=False)
    return heads, figures


def with_template(folder: Path, whole: Whole, **settings: Any) -> PreparationConfig:
    """Settings with a head as the template."""
    template, mask = folder / "template.nii.gz", folder / "template_brain.nii.gz"
    write_volume(template, whole.image.data, whole.image.affine)
    write_volume(mask, whole.brain.data, whole.brain.affine)
    return PreparationConfig(template=template, template_mask=mask, **settings)


def way(before: Head, after: Head) -> Affine:
    """The motion of the first modality between two steps."""
    return after.reference.affine @ np.linalg.inv(before.reference.affine)


def comes_back(folder: Path, whole: Whole, voxel_mm: float, slices: int, masked: bool) -> dict[str, Figures]:
    """Bars that hold for every head: it is moved, scanned anew, prepared with the unmoved one as the template."""
    scan, _ = scanned(whole, MOTION, voxel_mm, slices, 0.3)
    config = with_template(folder, whole, extractor="given" if masked else "classical", voxel_size_mm=voxel_mm)
    heads, figures = done(steps_of(config, masked), head_of(scan, masked))
    if not masked:
        there = heads["extract"].mask
        assert there is not None
        assert dice(there.data, mask_at(scan.brain, lattice_of(there)).data) > 0.94
    error = error_mm(way(heads["bias"], heads["register"]), np.linalg.inv(MOTION), scan.points)
    print(f"{error:.2f} mm", figures["register"])
    assert error < 1
    assert lesions_return(whole, scan, heads["crop"]) > 0.9
    return figures


def lesions_return(whole: Whole, scan: Whole, prepared: Head) -> float:
    """Dice of the large lesions of the scan, and of what was prepared brought back to the scan by the known motion."""
    assert prepared.segmentation is not None
    large = Grid((prepared.segmentation.data == 1).astype(np.uint8), prepared.segmentation.affine)
    return dice(labels_at(moved(large, MOTION), lattice_of(scan.lesions)).data, scan.lesions.data == 1)


def field_found(image: Grid, brain: Grid) -> np.ndarray:
    """Logarithm of what ``bias`` divides by, (X, Y, Z)."""
    (step,) = steps_of(PreparationConfig(steps=("bias",)), True)
    corrected, _ = step.run(Head({"t1": image}, brain))
    assert corrected.reference.data.min() >= min(0.0, float(image.data.min()))
    return np.log(np.maximum(image.data, 1e-3)) - np.log(np.maximum(corrected.reference.data, 1e-3))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_distorted_phantom_comes_back(tmp_path: Path) -> None:
    comes_back(tmp_path, phantom(), 2.0, 1, masked=True)


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("slices", [1, 5])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("make", [real, functools.partial(phantom, "t2", "ATLAS_v2", 1, 1.0)], ids=["ch2", "phantom"])
def test_every_distorted_head_comes_back(tmp_path: Path, make: Any, masked: bool, slices: int) -> None:
    comes_back(tmp_path, make(), 1.0, slices, masked)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "make",
    [phantom, pytest.param(real, marks=[pytest.mark.nightly, pytest.mark.timeout(3600)])],
    ids=["phantom", "ch2"],
)
def test_an_added_bias_field_is_found_in_addition(make: Any) -> None:
    """Both heads have a field of their own already (a ratio of 1.1 in ``ch2``)."""
    voxel_mm = 2.0 if make is phantom else 1.0
    (scan, field), (plain, _) = (scanned(make(), np.eye(4), voxel_mm, bias=bias) for bias in (0.3, 0.0))
    inside = scan.brain.data > 0
    both, own = (field_found(one.image, scan.brain)[inside] for one in (scan, plain))
    correlation = np.corrcoef(both - own, np.log(field)[inside])[0, 1]
    print(f"{correlation:.3f}; own field included {np.corrcoef(both, np.log(field)[inside])[0, 1]:.3f}")
    assert correlation > 0.95
    assert abs(both.mean()) < 1e-3  # the mean brightness stays


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_runs_are_byte_for_byte_the_same_whatever_the_threads(tmp_path: Path) -> None:
    scan, _ = scanned(phantom(), MOTION, 4.0, bias=0.2)
    config = with_template(tmp_path, phantom(), extractor="given", voxel_size_mm=4.0)
    before, ends = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads(), []
    try:
        for threads in (1, 3):
            sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
            steps = pickle.loads(pickle.dumps(steps_of(config, True)))  # as on another node
            heads, figures = done(steps, head_of(scan, masked=True))
            ends.append((heads["crop"], figures))
            assert sitk.ProcessObject.GetGlobalDefaultNumberOfThreads() == threads
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)
    (one, told), (other, again) = ends
    assert told == again
    assert one.mask is not None
    assert other.mask is not None
    for name in one.images:
        assert one.images[name].data.tobytes() == other.images[name].data.tobytes()
        assert one.images[name].affine.tobytes() == other.images[name].affine.tobytes()
    assert one.mask.data.tobytes() == other.mask.data.tobytes()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_another_modality_is_brought_to_the_first_and_one_that_lies_there_stays() -> None:
    t1, t2 = phantom("t1"), phantom("t2")
    by = motion(8, 12, 1)
    apart = Head({"t1": t1.image, "t2": moved(t2.image, by), "pd": t2.image}, t1.brain, moved(t2.lesions, by))
    (step,) = steps_of(PreparationConfig(steps=("align",)), True)
    head, figures = step.run(apart)
    assert (
        error_mm(head.images["t2"].affine @ np.linalg.inv(apart.images["t2"].affine), np.linalg.inv(by), t1.points) < 1
    )
    np.testing.assert_array_equal(head.images["pd"].affine, t2.image.affine)
    assert figures["align_pd_kept"]
    assert not figures["align_t2_kept"]
    assert head.segmentation is not None
    np.testing.assert_array_equal(head.segmentation.affine, head.images["t2"].affine)  # it was drawn there
    assert head.images["t2"].data is apart.images["t2"].data


def small_head() -> Head:
    """A ball of a brain in a field of 20 x 22 x 24 voxels, with a lesion, 1 mm, LPS."""
    away = np.indices((20, 22, 24)) - np.array([10, 11, 12])[:, None, None, None]
    inside = np.square(away).sum(0) <= 36
    image = np.random.default_rng(0).uniform(10, 90, inside.shape).astype(np.float32)
    lesion = np.zeros(inside.shape, np.uint8)
    lesion[9:12, 10:12, 11:14] = 3
    lesion[10, 11, 19:22] = 1
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    return Head({"t1": Grid(image, affine)}, Grid(inside.astype(np.uint8), affine), Grid(lesion, affine))


def run(name: Any, head: Head, **settings: Any) -> tuple[Head, Figures]:
    (step,) = steps_of(PreparationConfig(steps=(name,), **settings), head.mask is not None)
    return step.run(head)


def test_what_needs_no_interpolation_is_not_interpolated() -> None:
    head = small_head()
    same, figures = run("resample", head)
    assert not figures["interpolated"]
    assert same.reference.data is head.reference.data
    assert run("resample", head, voxel_size_mm=2.0)[1]["interpolated"]


def test_nothing_interpolates_before_resampling(tmp_path: Path) -> None:
    """After turning and moving, every voxel still has its own value."""
    head = small_head()
    moved_head = Head({"t1": moved(head.reference, motion(30, 4, 1.1))}, head.mask)
    turned, figures = run("reorient", moved_head, orientation="RAS")
    np.testing.assert_array_equal(np.sort(turned.reference.data, axis=None), np.sort(head.reference.data, axis=None))
    assert 20 < float(str(figures["oblique_degrees"])) < 31


def test_stripping_sets_zero_outside_alone_and_tells_of_lesions_there() -> None:
    head = small_head()
    stripped, figures = run("strip", head)
    assert head.mask is not None
    inside = head.mask.data > 0
    np.testing.assert_array_equal(stripped.reference.data[inside], head.reference.data[inside])
    assert not stripped.reference.data[~inside].any()
    assert figures["lesion_warning"] == "label 1 had 0.003 ml before cutting it to the brain mask and has 0 ml (-100%)"
    assert stripped.segmentation is not None
    assert head.segmentation is not None
    np.testing.assert_array_equal(stripped.segmentation.data, head.segmentation.data)


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        ({"crop_margin_mm": 0}, (13, 13, 13)),
        ({"crop_margin_mm": 3}, (19, 19, 19)),
        ({"crop_shape": (16, 30, 13)}, (16, 30, 13)),
    ],
)
def test_cropping_keeps_the_brain_in_the_middle_and_where_it_is_in_space(settings: Any, shape: tuple[int, ...]) -> None:
    head = small_head()
    cropped, figures = run("crop", head, **settings)
    assert cropped.reference.data.shape == shape
    assert figures["brain_cut_fraction"] == 0
    assert cropped.mask is not None
    assert head.mask is not None
    np.testing.assert_array_equal(mask_at(cropped.mask, lattice_of(head.mask)).data, head.mask.data)
    back = linear(cropped.reference, lattice_of(head.reference)).data
    inside = head.mask.data > 0
    np.testing.assert_allclose(back[inside], head.reference.data[inside], atol=1e-3)
    planes = np.flatnonzero(cropped.mask.data.any((1, 2)))
    assert abs((planes[0] + planes[-1]) / 2 - (shape[0] - 1) / 2) <= 0.5


def test_a_shape_that_cuts_brain_and_lesion_says_so() -> None:
    _, figures = run("crop", small_head(), crop_shape=(13, 13, 6))
    assert float(str(figures["brain_cut_fraction"])) > 0.2
    assert "label 1 had 0.003 ml before cropping and has 0 ml" in str(figures["lesion_warning"])


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("strip", {"mask": None}, "no brain mask"),
        ("crop", {"mask": None}, "no brain mask"),
        ("extract", {"mask": Grid(np.ones((4, 4, 4), np.uint8), motion(0, 500, 1))}, "holds no voxel of the scan"),
        ("bias", {"mask": Grid(np.ones((4, 4, 4), np.uint8), motion(0, 500, 1))}, "lies beside this scan"),
        ("crop", {"segmentation": Grid(np.ones((4, 4, 4), np.uint8), np.eye(4))}, "let resample go before it"),
    ],
)
def test_what_a_step_lacks_is_told_with_the_remedy(name: str, change: Any, told: str) -> None:
    with pytest.raises(DataError, match=told):
        run(name, replace(small_head(), **change))


def test_who_makes_the_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert extractor_of(PreparationConfig(), True) == ("given", None)
    assert extractor_of(PreparationConfig(), False) == ("classical", None)
    assert extractor_of(PreparationConfig(extractor="classical"), True) == ("classical", None)
    assert extractor_of(PreparationConfig(extractor="given"), False) == ("given", None)
    (tmp_path / "mri_synthstrip").write_text("#!/bin/sh\necho 8.1\n")
    (tmp_path / "mri_synthstrip").chmod(0o755)
    kind, program = extractor_of(PreparationConfig(), False)
    assert kind == "synthstrip"
    assert program is not None
    assert program.version == "8.1"
    (extract,) = steps_of(PreparationConfig(steps=("extract",)), False)
    assert extract.parameters["program_version"] == "8.1"


def test_parameters_name_the_template_by_its_bytes(tmp_path: Path) -> None:
    head = small_head()
    assert head.mask is not None
    whole = Whole(head.reference, head.mask, head.mask)
    brighter = replace(whole, image=Grid(head.reference.data + 1, head.reference.affine))

    def parameters(folder: str, template: Whole) -> dict[str, Any]:
        (tmp_path / folder).mkdir(exist_ok=True)
        return {step.name: step.parameters for step in steps_of(with_template(tmp_path / folder, template), True)}

    one, same, other = parameters("a", whole), parameters("b", whole), parameters("b", brighter)
    assert list(one) == list(PreparationConfig().steps)
    assert one == same
    assert {name for name in one if one[name] != other[name]} == {"register", "resample"}


def test_without_a_template_nothing_is_registered_and_an_absent_one_is_told(tmp_path: Path) -> None:
    assert "register" not in [step.name for step in steps_of(PreparationConfig(), True)]
    with pytest.raises(DataError, match="none is downloaded"):
        steps_of(PreparationConfig(template=tmp_path / "absent.nii.gz"), True)
