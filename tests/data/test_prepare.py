"""Preparation: parity with the published pipeline, TorchIO's own transforms, and laws."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
import torchio as tio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reference_settings import load_arrays, preprocessing

from cddpm.config import DataConfig
from cddpm.data.geometry import crop_window, plan, take
from cddpm.data.prepare import Prepared, _smoothed_crop, prepare
from cddpm.data.volume import Volume, VolumeFileError, read_image, read_mask

STORED = DataConfig(orientation="stored", voxel_size_mm=None, volume_shape=(64, 64, 40), centre="scan")
SMALL = DataConfig(volume_shape=(32, 32, 20))
OF_FILE = SMALL.model_copy(update={"centre": "scan"})


def scan(shape: tuple[int, int, int], affine: npt.NDArray[np.float64] | None = None) -> tuple[Volume, Volume]:
    """A smooth ball with texture and its mask."""
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) if affine is None else affine
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    inside = sum(a**2 for a in axes) < 0.7
    noise = np.random.default_rng(3).normal(0, 20, shape)
    image = np.where(inside, 400 + 200 * axes[0] - 100 * axes[1] * axes[2] + noise, 0).astype(np.float32)
    return Volume(image, affine, Path("ball.nii")), Volume(inside.astype(np.uint8), affine, Path("ball_mask.nii"))


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize(("name", "arrays"), [("vol_a", "preprocess"), ("vol_b", "preprocess_b")])
def test_equals_published_preprocessing(reference_dir: Path, near: Callable[..., None], name: str, arrays: str) -> None:
    expected = load_arrays(reference_dir, arrays)
    image, mask = read_image(reference_dir / f"{name}.nii.gz"), read_mask(reference_dir / f"{name}_mask.nii.gz")
    done = prepare(image, mask, mask, preprocessing(expected))
    near("preprocessing: image", done.image, expected["final_vol"], 1e-5)
    near("preprocessing: mask", done.mask, expected["final_mask"], 0)
    near("preprocessing: segmentation", done.segmentation, expected["final_mask"], 0)
    low, high = expected["percentiles_1_99_in_mask"]
    near("preprocessing: percentiles", done.intensities, [low, high], 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(61, 75, 43), (64, 64, 40), (30, 90, 41)])
@pytest.mark.parametrize("factor", [1.0, 1.5, 2.0])
def test_equals_torchio_transforms(shape: tuple[int, int, int], factor: float) -> None:
    image, mask = scan(shape)
    done = prepare(image, mask, None, STORED.model_copy(update={"smoothing_iterations": 0, "rescale_factor": factor}))
    subject = tio.Subject(
        image=tio.ScalarImage(tensor=torch.from_numpy(image.data)[None]),
        mask=tio.LabelMap(tensor=torch.from_numpy(mask.data)[None]),
    )
    rescale = tio.RescaleIntensity((0, 1), percentiles=(1, 99), masking_method="mask")
    resample = tio.Resample(factor, image_interpolation="bspline")
    expected = tio.Compose([tio.CropOrPad((64, 64, 40)), rescale, resample])(subject)
    np.testing.assert_allclose(done.image, expected["image"].numpy()[0], atol=1e-5)
    np.testing.assert_array_equal(done.mask, expected["mask"].numpy()[0])


@pytest.mark.parametrize("shape", [(64, 64, 40), (61, 75, 43)])
@pytest.mark.parametrize("factor", [1.5, 3.0, 7.0])
def test_published_grid_equals_torchio_on_that_grid(shape: tuple[int, int, int], factor: float) -> None:
    """Sizes rounded up and the first sample at (factor - 1) / 2, as TorchIO 0.18.73 does; here by naming the target."""
    image, mask = scan(shape)
    settings = {"smoothing_iterations": 0, "rescale_factor": factor, "rescale_grid": "published"}
    done = prepare(image, mask, None, STORED.model_copy(update=settings))
    sizes = tuple(int(np.ceil(n / factor)) for n in (64, 64, 40))
    assert done.image.shape == sizes
    target = np.diag([factor, factor, factor, 1.0])
    target[:3, 3] = (factor - 1) / 2
    subject = tio.Subject(
        image=tio.ScalarImage(tensor=torch.from_numpy(image.data)[None]),
        mask=tio.LabelMap(tensor=torch.from_numpy(mask.data)[None]),
    )
    rescale = tio.RescaleIntensity((0, 1), percentiles=(1, 99), masking_method="mask")
    cropped = tio.Compose([tio.CropOrPad((64, 64, 40)), rescale])(subject)
    target = cropped["image"].affine @ target  # the crop moved voxel 0
    expected = tio.Resample((sizes, target), image_interpolation="bspline")(cropped)
    np.testing.assert_allclose(done.image, expected["image"].numpy()[0], atol=1e-5)
    np.testing.assert_array_equal(done.mask, expected["mask"].numpy()[0])


def test_orientation_of_the_file_does_not_matter() -> None:
    image, mask = scan((40, 44, 26))
    # index of the turned array (k, 39 - i, j) to index of the original (i, j, k)
    back = np.array([[0, -1, 0, 39], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])

    def turned(scan: Volume) -> Volume:
        data = np.ascontiguousarray(scan.data.transpose(2, 0, 1)[:, ::-1])
        return Volume(data, scan.affine @ back, scan.path)

    plain, other = prepare(image, mask, None, SMALL), prepare(turned(image), turned(mask), None, SMALL)
    np.testing.assert_allclose(plain.image, other.image, atol=1e-5)
    np.testing.assert_array_equal(plain.mask, other.mask)


def test_lps_and_ras_are_mirror_images() -> None:
    image, mask = scan((32, 32, 20))
    lps = prepare(image, mask, None, SMALL)
    ras = prepare(image, mask, None, SMALL.model_copy(update={"orientation": "RAS"}))
    np.testing.assert_allclose(lps.image, ras.image[::-1, ::-1], atol=1e-5)


def test_half_millimetre_scan_is_brought_to_one_millimetre() -> None:
    fine_image, fine_mask = scan((64, 64, 40), np.diag([-0.5, -0.5, 0.5, 1.0]))
    fine = prepare(fine_image, fine_mask, None, OF_FILE)
    assert fine.geometry.resampled_shape == (32, 32, 20)
    assert fine.geometry.voxel_size_mm == (1.0, 1.0, 1.0)
    volume_mm3 = [float(m.sum()) for m in (fine.mask * 8.0, fine_mask.data * 0.125)]
    assert volume_mm3[0] == pytest.approx(volume_mm3[1], rel=0.05)


def test_one_percent_of_voxel_size_is_not_resampled() -> None:
    image, mask = scan((32, 32, 20), np.diag([-1.009, -0.992, 1.0, 1.0]))
    exact = scan((32, 32, 20))
    near, plain = prepare(image, mask, None, OF_FILE), prepare(*exact, None, OF_FILE)
    assert near.geometry.resampled_shape == (32, 32, 20)
    np.testing.assert_allclose(near.image, plain.image, atol=0.02)  # the flow knows the voxel size
    np.testing.assert_array_equal(near.mask, plain.mask)


@pytest.mark.parametrize("shape", [(32, 31, 20), (58, 80, 40)])
def test_flow_near_the_crop_equals_flow_over_everything(shape: tuple[int, int, int]) -> None:
    image, _ = scan((61, 75, 43))
    everything = sitk.CurvatureFlow(sitk.GetImageFromArray(image.data.T), timeStep=0.125, numberOfIterations=3)
    first = [there.start - here.start for there, here in map(crop_window, image.data.shape, shape)]
    expected = take(sitk.GetArrayFromImage(everything).T, (first[0], first[1], first[2]), shape)
    geometry = plan(image, STORED.model_copy(update={"volume_shape": shape}))
    np.testing.assert_array_equal(_smoothed_crop(image.data, geometry, iterations=3), expected)


def test_smoothing_smooths_and_keeps_edges() -> None:
    image, mask = scan((32, 32, 20))
    plain = SMALL.model_copy(update={"rescale_factor": 1.0, "smoothing_iterations": 0})
    rough, smooth = (
        prepare(image, mask, None, plain),
        prepare(image, mask, None, plain.model_copy(update={"smoothing_iterations": 3})),
    )
    centre = (slice(12, 20), slice(12, 20), slice(7, 13))
    assert smooth.image[centre].std() < 0.8 * rough.image[centre].std()
    assert smooth.image[0, 0].max() < 0.02


def test_scan_brighter_by_a_factor_gives_the_same() -> None:
    image, mask = scan((40, 44, 26))
    plain = SMALL.model_copy(update={"smoothing_iterations": 0})
    brighter = Volume(image.data * 7, image.affine, image.path)
    np.testing.assert_allclose(
        prepare(image, mask, None, plain).image, prepare(brighter, mask, None, plain).image, atol=1e-4
    )


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(
    scale=st.floats(0.01, 100),
    offset=st.floats(-4000, 4000),
    shape=st.tuples(*(st.integers(n - 6, n + 12) for n in (32, 32, 20))),
    voxel_size_mm=st.sampled_from([None, 1.0, 1.3]),
    smoothing=st.sampled_from([0, 2]),
)
@example(1.0, -1024.0, (30, 26, 16), 1.0, 0)  # smaller than the grid: much of it is padded
def test_offset_and_scale_of_the_intensities_change_nothing(
    scale: float, offset: float, shape: tuple[int, int, int], voxel_size_mm: float | None, smoothing: int
) -> None:
    """What is padded is background too, whatever number the scan has there. Numbers of files are float32."""
    config = SMALL.model_copy(update={"smoothing_iterations": smoothing, "voxel_size_mm": voxel_size_mm})
    image, mask = scan(shape)
    other = Volume((scale * image.data.astype(np.float64) + offset).astype(np.float32), image.affine, image.path)
    plain, moved = prepare(image, mask, None, config), prepare(other, mask, None, config)
    lost = 1e-3 + 4e-6 * abs(offset) / (scale * 600)  # of the range, by rounding what is small beside the offset
    np.testing.assert_allclose(moved.image, plain.image, atol=lost)
    np.testing.assert_array_equal(moved.mask, plain.mask)
    expected = [scale * value + offset for value in plain.intensities]
    assert moved.intensities == pytest.approx(expected, abs=lost * scale * 600 + 1e-3)
    rim = np.ones(plain.mask.shape, bool)
    rim[1:-1, 1:-1, 1:-1] = False
    assert np.median(np.abs(moved.image[rim & (plain.mask == 0)])) < 0.02  # background


def test_intensities_and_types() -> None:
    done: Prepared = prepare(*scan((40, 44, 26)), None, SMALL)
    assert done.image.dtype == np.float32
    assert done.mask.dtype == np.uint8
    assert done.segmentation is None
    assert -0.2 < done.image.min() <= 0.01
    assert 0.9 < done.image.max() < 1.2
    assert done.image.shape == done.mask.shape == SMALL.working_shape


def test_mask_of_other_shape_or_one_voxel_off_is_refused() -> None:
    image, mask = scan((32, 32, 20))
    shorter = Volume(mask.data[:, :, 1:], mask.affine, mask.path)
    with pytest.raises(VolumeFileError, match=r"ball_mask\.nii: shape 32x32x19, but ball\.nii has 32x32x20"):
        prepare(image, shorter, None, SMALL)
    shifted = mask.affine.copy()
    shifted[0, 3] += 1
    with pytest.raises(VolumeFileError, match=r"up to 1\.00 mm away"):
        prepare(image, mask, Volume(mask.data, shifted, Path("seg.nii")), SMALL)


def test_mask_of_other_spacing_is_refused() -> None:
    image, mask = scan((32, 32, 20))
    wider = Volume(mask.data, np.diag([-1.0, -1.0, 1.2, 1.0]), mask.path)
    with pytest.raises(VolumeFileError, match=r"up to 3\.80 mm away from those of ball\.nii"):
        prepare(image, wider, None, SMALL)


@pytest.mark.parametrize("threads", [1, 3])
def test_number_of_threads_changes_nothing(threads: int) -> None:
    image, mask = scan((61, 75, 43))
    plain = prepare(image, mask, None, STORED)
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    try:
        np.testing.assert_array_equal(prepare(image, mask, None, STORED).image, plain.image)
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def test_brain_outside_of_the_crop_and_flat_brain_are_refused() -> None:
    image, mask = scan((60, 40, 30))
    corner = np.zeros_like(mask.data)
    corner[:5, :5, :5] = 1
    with pytest.raises(VolumeFileError, match="no brain voxel inside the centred crop"):
        prepare(image, Volume(corner, mask.affine, mask.path), None, OF_FILE)
    flat = Volume(np.where(mask.data, np.float32(5), np.float32(0)), image.affine, image.path)
    with pytest.raises(VolumeFileError, match="intensity 5 at both percentiles"):
        prepare(flat, mask, None, SMALL.model_copy(update={"smoothing_iterations": 0}))
