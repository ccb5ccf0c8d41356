"""Masks that are stored otherwise than their scan, and scans without numbers where there is no brain."""

from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_package import turned

from cddpm.config import DataConfig
from cddpm.data.brain import estimate_mask
from cddpm.data.prepare import aligned, prepare
from cddpm.data.volume import Volume, VolumeFileError, read_image, read_map, read_mask, read_segmentation, write_volume

AFFINE = np.array([[-1.9, 0.1, 0, 9], [0.1, 1.9, 0.1, -20], [0, -0.1, 3, 5], [0, 0, 0, 1]])
CONFIG = DataConfig(volume_shape=(24, 26, 20), voxel_size_mm=None)


def ball(shape: tuple[int, int, int] = (20, 22, 16)) -> np.ndarray:
    axes = np.meshgrid(*(np.linspace(-1.2, 1.2, n) for n in shape), indexing="ij")
    return ((axes[0] - 0.1) ** 2 + axes[1] ** 2 + (axes[2] + 0.1) ** 2) < 0.8


def scan(offset: float = 0.0) -> tuple[Volume, Volume]:
    data = np.where(ball(), 200 + 20 * np.indices(ball().shape)[0], 0) + offset
    return Volume(data.astype(np.float32), AFFINE, Path("s.nii")), Volume(
        ball().astype(np.uint8), AFFINE, Path("m.nii")
    )


@pytest.mark.parametrize("axes", list(permutations(range(3))))
@pytest.mark.parametrize("signs", list(product((False, True), repeat=3)))
def test_a_mask_in_any_orientation_is_turned_to_its_scan(axes, signs) -> None:
    image, mask = scan()
    flips = tuple(axis for axis in range(3) if signs[axis])
    found = aligned(image, turned(mask, axes, flips))
    np.testing.assert_array_equal(found.data, mask.data)
    np.testing.assert_allclose(found.affine, image.affine, atol=1e-9)
    notes = [note for note in found.notes if "turned to the scan's axes" in note]
    assert len(notes) == (0 if axes == (0, 1, 2) and not flips else 1)


def test_another_grid_in_another_orientation_stays_refused() -> None:
    image, mask = scan()
    moved = turned(mask, (1, 0, 2), (0,))
    moved.affine[0, 3] += 4
    with pytest.raises(VolumeFileError, match=r"m\.nii: shape 22x20x16, but s\.nii has 20x22x16"):
        aligned(image, moved)


def test_a_header_without_orientation_turns_nothing(tmp_path: Path) -> None:
    """The place that is assumed for it would fit by chance: its centre is taken for the world's."""
    header = nib.Nifti1Image(np.zeros((20, 22, 16), np.uint8), None).header
    header["pixdim"][1:4] = 1
    affine = np.asarray(header.get_base_affine()) @ np.diag([-1, 1, 1, 1])
    affine[0, 3] *= -1
    image = Volume(scan()[0].data, affine, Path("s.nii"))
    mask = nib.Nifti1Image(ball().astype(np.uint8), None, header)
    mask.header["sform_code"] = mask.header["qform_code"] = 0
    nib.save(mask, tmp_path / "m.nii")
    with pytest.raises(VolumeFileError, match="places voxels up to"):
        aligned(image, read_mask(tmp_path / "m.nii"))


def through_file(folder: Path, data: np.ndarray) -> Path:
    write_volume(folder / "s.nii", data.astype(np.float32), AFFINE)
    return folder / "s.nii"


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(
    bad=st.sampled_from([np.nan, np.inf, -np.inf]),
    slab=st.integers(0, 3),
    everything=st.booleans(),
    masked=st.booleans(),
)
def test_nan_outside_of_the_brain_is_background(
    tmp_path_factory, bad: float, slab: int, everything: bool, masked: bool
) -> None:
    image, mask = scan()
    data = np.where(ball(), image.data, bad) if everything else image.data.copy()
    data[: slab + 1, :, 0] = bad
    read = read_image(through_file(tmp_path_factory.mktemp("nan"), data))
    assert "NaN or infinite; taken for background (0)" in read.notes[-1]
    np.testing.assert_array_equal(read.data, image.data)
    found = mask if masked else estimate_mask(read)
    np.testing.assert_array_equal(found.data, mask.data)
    same = prepare(image, mask, None, CONFIG).image
    np.testing.assert_allclose(
        prepare(read, found, None, CONFIG).image, same, atol=1e-6
    )  # affines of files are float32


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    bad=st.sampled_from([np.nan, np.inf]),
    everywhere=st.booleans(),
    masked=st.booleans(),
)
def test_nan_inside_of_the_brain_is_refused(
    tmp_path_factory, seed: int, bad: float, everywhere: bool, masked: bool
) -> None:
    image, mask = scan()
    deep = np.argwhere(mask.data[1:-1, 1:-1, 1:-1] & ball()[2:, 1:-1, 1:-1] & ball()[:-2, 1:-1, 1:-1]) + 1
    place = tuple(deep[np.random.default_rng(seed).integers(len(deep))]) if masked else (11, 10, 7)
    data = np.where(ball(), image.data, np.nan) if everywhere else image.data.copy()
    data[place] = bad
    read = read_image(through_file(tmp_path_factory.mktemp("nan"), data))
    with pytest.raises(VolumeFileError, match="1 voxels inside of the brain are NaN or infinite"):
        prepare(read, mask if masked else estimate_mask(read), None, CONFIG)


@pytest.mark.parametrize("offset", [-1024.0, -300.0])
def test_background_is_darker_than_the_brain_whatever_its_numbers(tmp_path: Path, offset: float) -> None:
    image, mask = scan(offset)
    read = read_image(through_file(tmp_path, np.where(ball(), image.data, np.nan)))
    assert read.data[~ball()].max() < image.data[ball()].min()
    np.testing.assert_array_equal(estimate_mask(read).data, mask.data)


def test_labels_are_0_where_they_are_nan_but_not_within_the_brain(tmp_path: Path) -> None:
    inside = np.where(ball(), 1.0, np.nan)
    for read in (read_mask, read_segmentation):
        np.testing.assert_array_equal(read(through_file(tmp_path, inside)).data, ball())
    inside[10, 10, 8] = np.nan
    with pytest.raises(VolumeFileError, match="inside of the mask"):
        read_mask(through_file(tmp_path, inside))
    image, mask = scan()
    with pytest.raises(VolumeFileError, match="1 voxels inside of the brain"):
        prepare(image, mask, read_segmentation(through_file(tmp_path, inside)), CONFIG)
    for read in (read_map, read_image):
        with pytest.raises(VolumeFileError, match="7040 voxels are NaN" if read is read_image else "are NaN"):
            read(through_file(tmp_path, np.full(inside.shape, np.nan)))
