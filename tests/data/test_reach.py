"""Laws of the whole brain: no voxel of it is left out, the window stays what it was, and a file's margins change nothing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cddpm.config import DataConfig
from cddpm.data import geometry as grid
from cddpm.data.brain import estimate_mask, suspicions
from cddpm.data.geometry import Geometry, field_of_view, plan, planes, to_input_grid
from cddpm.data.prepare import prepare, prepare_whole
from cddpm.data.reach import reaching
from cddpm.data.volume import Volume, read_image

SMALL = DataConfig(volume_shape=(16, 16, 8), smoothing_iterations=1)
HEADS = {"mricron-data (Debian)": Path("/usr/share/mricron/templates/ch2bet.nii.gz")}

SHAPES = st.tuples(*(st.integers(6, 40) for _ in range(3)))
STEPS = st.tuples(*(st.sampled_from([0.7, 1.0, 1.3, 2.5]) for _ in range(3)))
WAYS = st.fixed_dictionaries(
    {
        "orientation": st.sampled_from(["LPS", "RAS", "stored"]),
        "rescale_grid": st.sampled_from(["centred", "published"]),
        "rescale_factor": st.sampled_from([1.0, 1.5, 2.0, 3.0]),
        "centre": st.sampled_from(["brain", "scan"]),
        "smoothing_iterations": st.integers(0, 3),
    }
)


def lying(shape: tuple[int, ...], sizes_mm: tuple[float, ...] = (1.0, 1.0, 1.0)) -> Volume:
    """A scan whose axes run L, S, P, say; its intensities are noise."""
    affine = np.zeros((4, 4))
    affine[[2, 0, 1, 3], range(4)] = [-sizes_mm[0], sizes_mm[1], sizes_mm[2], 1]
    values = np.random.default_rng(sum(shape)).random(shape, np.float32)
    return Volume(values, affine, Path("x.nii"))


def box_of_brain(shape: tuple[int, ...], draw: Any) -> NDArray[np.bool_]:
    """A box, and a stray voxel anywhere."""
    brain = np.zeros(shape, bool)
    ends = [sorted(draw(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)))) for n in shape]
    brain[tuple(slice(low, high + 1) for low, high in ends)] = True
    brain[tuple(draw(st.integers(0, n - 1)) for n in shape)] = True
    return brain


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(shape=SHAPES, sizes_mm=STEPS, way=WAYS, data=st.data())
def test_slices_that_follow_the_brain_hold_all_of_it(shape: Any, sizes_mm: Any, way: Any, data: Any) -> None:
    scan, brain = lying(shape, sizes_mm), box_of_brain(shape, data.draw)
    geometry = plan(scan, DataConfig(**way, volume_shape=(200, 200, None)), brain)
    assert not (brain & ~field_of_view(geometry)).any()


def test_a_plane_between_two_voxels_is_reached() -> None:
    """Voxels of 0.7 mm come to lie in the middle between two of 1 mm, where the way back takes the other one."""
    scan, brain = lying((6, 17, 6), (0.7, 0.7, 0.7)), np.zeros((6, 17, 6), bool)
    brain[0, :, 0] = True
    window = plan(scan, DataConfig(rescale_factor=1.0, smoothing_iterations=0, volume_shape=(4, 4, 4)), brain)
    assert not (brain & ~field_of_view(reaching(window, brain, 0))).any()


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(shape=SHAPES, sizes_mm=STEPS, way=WAYS, kept=st.tuples(*(st.integers(4, 30) for _ in range(3))), data=st.data())
def test_no_voxel_of_a_brain_is_left_out(shape: Any, sizes_mm: Any, way: Any, kept: Any, data: Any) -> None:
    """Continued over the brain, a window reaches all of it; its slices alone do where their number follows the brain."""
    scan, brain = lying(shape, sizes_mm), box_of_brain(shape, data.draw)
    config = DataConfig(**way, volume_shape=kept)
    window = plan(scan, config, brain)
    whole = reaching(window, brain, config.smoothing_iterations)
    assert not (brain & ~field_of_view(whole)).any()
    assert (whole is window) == (not (brain & ~field_of_view(window)).any())
    ones = np.ones(whole.working_shape, np.uint8)
    np.testing.assert_array_equal(field_of_view(whole), to_input_grid(ones, whole, 0) > 0)
    assert Geometry.from_dict(whole.to_dict()) == whole
    free = plan(scan, config.model_copy(update={"volume_shape": (*kept[:2], None)}), brain)
    low, high = planes(free, brain)[2]
    assert free.crop_start[2] <= low
    assert high < free.crop_start[2] + free.volume_shape[2]
    assert free.beyond is None


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(shape=SHAPES, sizes_mm=STEPS, way=WAYS, kept=st.tuples(*(st.integers(4, 20) for _ in range(3))), data=st.data())
def test_a_continued_grid_is_the_windows_own(shape: Any, sizes_mm: Any, way: Any, kept: Any, data: Any) -> None:
    """Every voxel of the window lies in the file where it lay without the rest."""
    scan, brain = lying(shape, sizes_mm), box_of_brain(shape, data.draw)
    config = DataConfig(**way, volume_shape=kept)
    window = plan(scan, config, brain)
    whole = reaching(window, brain, config.smoothing_iterations)
    for axis in range(3):
        own, continued = (_in_file(one, axis) for one in (window, whole))
        np.testing.assert_allclose(continued[whole.window[axis]], own, atol=1e-6)
        assert np.allclose(np.diff(continued), whole.rescale_factor * whole.voxel_step[axis])


def _in_file(way: Geometry, axis: int) -> NDArray[np.float64]:
    """Where the working voxels of an axis lie along the oriented file."""
    crop = way.sample_start[axis] + way.rescale_factor * np.arange(way.working_shape[axis])
    field = way.resample_start[axis] + way.voxel_step[axis] * (way.crop_start[axis] + crop)
    own, flipped = grid.axes_along(way.orientation, way.working_orientation)[axis]
    first, size = (0, way.shape[own]) if way.field is None else (way.field[0][own], way.field[1][own])
    return field + (way.shape[own] - first - size if flipped else first)


def head(shape: tuple[int, int, int], radii: tuple[float, ...], offset: tuple[int, ...] = (0, 0, 0)) -> Any:
    """An ellipsoid with a texture that it keeps wherever it lies."""
    places = [np.arange(n) - n // 2 - o for n, o in zip(shape, offset, strict=True)]
    x, y, z = np.meshgrid(*places, indexing="ij")
    brain = (x / radii[0]) ** 2 + (y / radii[1]) ** 2 + (z / radii[2]) ** 2 < 1
    texture = 100 + 20 * np.sin(x / 2) + 15 * np.cos(y / 3) + z
    affine = np.diag([-1.0, -1, 1, 1])
    image = Volume(np.where(brain, texture, 0).astype(np.float32), affine, Path("x.nii"))
    return image, Volume(brain.astype(np.uint8), affine, Path("m.nii"))


@pytest.mark.parametrize("factor", [1.0, 1.5, 2.0])
def test_what_lies_in_the_window_stays_as_it_is(factor: float) -> None:
    image, mask = head((40, 44, 40), (9.0, 12.0, 14.0))
    config = SMALL.model_copy(update={"rescale_factor": factor})
    window, whole = prepare(image, mask, None, config), prepare_whole(image, mask, None, config)
    assert whole.geometry.beyond is not None
    assert [sum(ends) > 0 for ends in whole.geometry.beyond] == [True, True, True]
    np.testing.assert_array_equal(whole.image[whole.geometry.window], window.image)
    np.testing.assert_array_equal(whole.mask[whole.geometry.window], window.mask)
    assert whole.intensities == window.intensities
    assert not (mask.data.astype(bool) & ~field_of_view(whole.geometry)).any()


def test_the_rest_is_on_the_windows_scale() -> None:
    """Away from the ends of both it is what a larger window makes of it, but for its percentiles."""
    image, mask = head((60, 60, 60), (9.0, 9.0, 20.0))
    small = SMALL.model_copy(update={"volume_shape": (24, 24, 12)})
    whole = prepare_whole(image, mask, None, small)
    wide = prepare(image, mask, None, small.model_copy(update={"volume_shape": (24, 24, 32)}))
    first = (whole.image.shape[2] - 16) // 2
    low, high = whole.intensities
    own_low, own_high = wide.intensities
    expected = (wide.image * (own_high - own_low) + own_low - low) / (high - low)
    below, above = whole.geometry.window[2].start - first, whole.geometry.window[2].stop - first
    assert below >= 4
    for part in (slice(2, below - 1), slice(above + 1, 14)):
        found = whole.image[:, :, first:][:, :, part]
        inside = (
            (whole.mask[:, :, first:][:, :, part] > 0) & (found > 0.1) & (found < 0.9) & (expected[:, :, part] < 0.9)
        )
        assert inside.sum() > 50
        assert np.median(np.abs(found - expected[:, :, part])[inside]) < 0.005


@pytest.mark.parametrize("offset", [(3, -2, 5), (-4, 1, -6)])
@pytest.mark.parametrize("shape", [(16, 16, None), (12, 16, 8)])
def test_a_brain_moved_in_its_file_gives_the_same(offset: Any, shape: Any) -> None:
    config = SMALL.model_copy(update={"volume_shape": shape})
    one, other = (head((50, 50, 50), (7.0, 8.0, 14.0), place) for place in ((0, 0, 0), offset))
    found, moved = prepare_whole(*one, None, config), prepare_whole(*other, None, config)
    np.testing.assert_array_equal(moved.image, found.image)
    np.testing.assert_array_equal(moved.mask, found.mask)
    assert moved.geometry.working_shape == found.geometry.working_shape


def test_as_many_slices_as_the_brain_has() -> None:
    """Not more than the brain needs, whatever the file holds."""
    config = SMALL.model_copy(update={"volume_shape": (40, 40, None)})
    for radius in (6.0, 11.0, 17.5):
        done = prepare(*head((44, 44, 60), (9.0, 9.0, radius)), None, config)
        extent = 2 * int(np.ceil(radius)) - 1
        assert extent <= done.geometry.volume_shape[2] <= extent + 3
        assert done.mask[:, :, [0, -1]].any((0, 1)).any()


def test_a_field_of_view_too_small_is_told_until_all_is_looked_at() -> None:
    image, mask = head((40, 40, 60), (7.0, 7.0, 18.0))
    window = plan(image, SMALL, mask.data > 0)
    told = [sign for sign in suspicions(image, mask, window, "t2") if "was not looked at" in sign]
    assert len(told) == 1
    whole = reaching(window, mask.data > 0, SMALL.smoothing_iterations)
    assert not any("was not looked at" in sign for sign in suspicions(image, mask, whole, "t2"))


@pytest.mark.nightly
@pytest.mark.parametrize("package", HEADS)
def test_of_a_real_brain_nothing_is_left_out(package: str) -> None:
    if not HEADS[package].exists():
        pytest.skip(f"{HEADS[package]} is not here; the package {package} has it")
    image = read_image(HEADS[package])
    mask = estimate_mask(image)
    config = DataConfig(smoothing_iterations=0)
    window, whole = prepare(image, mask, None, config), prepare_whole(image, mask, None, config)
    brain = mask.data > 0
    unseen = 1 - np.count_nonzero(brain & field_of_view(window.geometry)) / np.count_nonzero(brain)
    assert 0.05 < unseen < 0.2
    assert not (brain & ~field_of_view(whole.geometry)).any()
    np.testing.assert_array_equal(whole.image[whole.geometry.window], window.image)
    alone = prepare(image, replace(mask), None, config.model_copy(update={"volume_shape": (192, 192, None)}))
    assert not (brain & ~field_of_view(alone.geometry)).any()
    assert alone.geometry.working_shape[:2] == (96, 96)
