"""From a scan as it lies in its file to what the network sees.

Curvature flow, centred crop or pad, intensities to [0, 1] (``intensity``; between two percentiles), B-spline downsampling:
the preprocessing of Behrendt et al. 2025 (arXiv 2312.04215, section 4.1), after bringing every scan to one
orientation and voxel size. B-spline interpolation overshoots [0, 1] a little; that is kept.

What lies beyond the field of view is taken for the scan's own background, whatever number that is in its file: offset and
scale of the intensities change nothing. Nor does it, with ``centre: brain``, how much of that background the file holds.

The window of a model may leave part of a brain out. ``prepare_whole`` continues it: what lies in the window stays as it is, bit
for bit, percentiles too, and the rest is brought to the same scale.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813

from cddpm.config import DataConfig
from cddpm.data import geometry as grid
from cddpm.data.geometry import Geometry
from cddpm.data.intensity import FlatBrainError, IntensityMap, intensity_map, quantiles
from cddpm.data.reach import reaching
from cddpm.data.volume import Volume, VolumeFileError, axis_codes, require_same_grid


def aligned(image: Volume, label: Volume) -> Volume:
    """``label`` on the grid of ``image``: as it is, or with its axes turned to those of ``image`` and a note.

    Turning moves no voxel in space. Headers without qform and sform tell no orientation, so nothing is turned by them.
    Raises ``VolumeFileError`` when the two lie on different grids.
    """
    try:
        require_same_grid(image, label)
    except VolumeFileError:
        turned = _turned(image, label) if _oriented(image) and _oriented(label) else None
        if turned is None:
            raise
        return turned
    return label


def require_finite(volume: Volume, mask: Volume) -> None:
    """Raises ``VolumeFileError`` when voxels that were NaN or infinite in the file of ``volume`` lie in the brain."""
    bad = 0 if volume.blank is None else int(np.count_nonzero(volume.blank & (mask.data > 0)))
    if bad:
        found = f"{bad} voxels inside of the brain are NaN or infinite"
        raise VolumeFileError(
            str(volume.path), "non-finite", found, "finite numbers are needed there; fill or export again"
        )


def _oriented(volume: Volume) -> bool:
    return volume.header is None or bool(int(volume.header["sform_code"]) or int(volume.header["qform_code"]))


def _turned(image: Volume, label: Volume) -> Volume | None:
    """``label`` with its axes along those of ``image``; None if that does not bring it to the grid of ``image``."""
    along = np.rint(np.linalg.solve(image.affine[:3, :3], label.affine[:3, :3])).astype(int)
    if (
        sorted(np.abs(along).ravel()) != [0] * 6 + [1] * 3
        or not np.abs(along).any(0).all()
        or not np.abs(along).any(1).all()
    ):
        return None
    axes, flipped = np.abs(along).argmax(1), along.sum(1) < 0
    back = np.zeros((4, 4))
    back[3, 3] = 1
    for new, (old, flip) in enumerate(zip(axes, flipped, strict=True)):
        back[old, new], back[old, 3] = (-1, label.data.shape[old] - 1) if flip else (1, 0)

    def turn(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.ascontiguousarray(np.flip(array.transpose(axes), tuple(np.flatnonzero(flipped).tolist())))

    there, here = axis_codes(label.affine), axis_codes(image.affine)
    note = f"{label.path.name} is stored as {there}, its scan as {here}; turned to the scan's axes"
    blank = None if label.blank is None else turn(label.blank)
    turned = replace(
        label, data=turn(label.data), affine=label.affine @ back, notes=(*label.notes, note), header=None, blank=blank
    )
    try:
        require_same_grid(image, turned)
    except VolumeFileError:
        return None
    return turned


FLOW_TIME_STEP = 0.125


@dataclass(frozen=True)
class Level:
    """Where the intensities of a file begin, and in what they are counted."""

    background: np.float32
    unit: np.float32

    def above(self, image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """An image of which 0 is the background, in what is padded too."""
        return (image - self.background) / self.unit


@dataclass(frozen=True)
class Scale:
    """How intensities of a file, smoothed, become [0, 1]."""

    level: Level
    mapped: IntensityMap
    """Of what ``level.above`` gives, after smoothing."""
    brain_only: bool
    """All else becomes 0: with ``DataConfig.standardised`` the background of a scan lies nowhere in particular."""

    @property
    def of_file(self) -> IntensityMap:
        """Of intensities of the file, after smoothing."""
        return self.mapped.of_file(float(self.level.unit), float(self.level.background))

    def scaled(self, smooth: npt.NDArray[np.float32], brain: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
        """What ``level.above`` gave, smoothed, cut off at both ends and between 0 and 1; ``brain`` like it."""
        scaled = self.mapped(smooth)
        return scaled * brain if self.brain_only else scaled


@dataclass(frozen=True)
class Prepared:
    """One scan on the working grid: image float32, mask uint8 {0, 1}, segmentation as its file was read; all (X, Y, Z)."""

    image: npt.NDArray[np.float32]
    mask: npt.NDArray[np.uint8]
    segmentation: npt.NDArray[np.uint8] | None
    geometry: Geometry
    scale: Scale

    @property
    def mapping(self) -> IntensityMap:
        """Of intensities of the file, after smoothing."""
        return self.scale.of_file

    @property
    def intensities(self) -> tuple[float, float]:
        """Intensity of the file (after smoothing) that became 0, and the one that became 1."""
        return self.mapping.points[0], self.mapping.points[-1]


def prepare(image: Volume, mask: Volume, segmentation: Volume | None, data: DataConfig) -> Prepared:
    """Bring a scan, its brain mask and its segmentation to the working grid of ``data``.

    Raises ``VolumeFileError`` when they do not lie on one grid, or when the brain is outside of the crop, constant or not
    finite, ``DataError`` for landmarks that were not learnt.
    """
    labels = [mask] if segmentation is None else [mask, segmentation]
    labels = [aligned(image, label) for label in labels]
    cropped = _smoothed(image, labels, data)
    brain, geometry = cropped.labels[0] > 0, cropped.geometry
    try:
        scale = Scale(cropped.level, intensity_map(cropped.image[brain], data), data.standardised)
    except FlatBrainError as error:
        raise _flat(image, error) from None
    small = [_downsample(label, geometry) for label in cropped.labels]
    lesion = small[1] if segmentation else None
    return Prepared(_downsample(scale.scaled(cropped.image, brain), geometry), small[0], lesion, geometry, scale)


def prepare_whole(image: Volume, mask: Volume, segmentation: Volume | None, data: DataConfig) -> Prepared:
    """As ``prepare``, continued over all of the brain (``Geometry.beyond``): no voxel of its mask is left out.

    The window that ``data`` ask for is what ``prepare`` makes of it. Raises as that does.
    """
    window, mask = prepare(image, mask, segmentation, data), aligned(image, mask)
    geometry, scale = reaching(window.geometry, mask.data > 0, data.smoothing_iterations), window.scale
    if geometry.beyond is None:
        return window
    above = _on_voxel_grid(scale.level.above(image.data), geometry)
    smooth = _smoothed_crop(above, geometry, data.smoothing_iterations)
    whole = _downsample(scale.scaled(smooth, _cropped(mask.data, geometry) > 0), geometry)
    brain = label_on_working_grid(mask.data, geometry)
    whole[geometry.window], brain[geometry.window] = window.image, window.mask
    if segmentation is None or window.segmentation is None:
        return Prepared(whole, brain, None, geometry, scale)
    lesion = label_on_working_grid(aligned(image, segmentation).data, geometry)
    lesion[geometry.window] = window.segmentation
    return Prepared(whole, brain, lesion, geometry, scale)


def brain_quantiles(image: Volume, mask: Volume, data: DataConfig) -> tuple[float, ...]:
    """What ``learnt_landmarks`` needs of a scan: its ``intensity.quantiles`` where ``prepare`` maps. Raises as that does."""
    cropped = _smoothed(image, [aligned(image, mask)], data)
    found = quantiles(cropped.image[cropped.labels[0] > 0], data)
    if found[0] == found[-1]:
        raise _flat(image, f"intensity {found[0]:g} at both percentiles {data.percentiles} inside the brain mask")
    return found


def _flat(image: Volume, found: object) -> VolumeFileError:
    return VolumeFileError(str(image.path), "constant", str(found), "a scan needs contrast inside its mask")


@dataclass(frozen=True)
class _Cropped:
    """A scan after smoothing, at its crop, as ``level.above`` counts; its mask first among the labels."""

    image: npt.NDArray[np.float32]
    labels: list[npt.NDArray[Any]]
    geometry: Geometry
    level: Level


def _smoothed(image: Volume, labels: list[Volume], data: DataConfig) -> _Cropped:
    for one in (image, *labels[1:]):
        require_finite(one, labels[0])
    inside = labels[0].data > 0
    geometry = grid.plan(image, data, inside)
    cropped = [_cropped(label.data, geometry) for label in labels]
    if not cropped[0].any():
        found = f"no brain voxel inside the centred crop of {geometry.volume_shape}"
        raise VolumeFileError(str(image.path), "empty-mask", found, "centre the scan or enlarge data.volume_shape")
    here = grid.field_window(geometry)
    level = Level(background_of(image.data[here], inside[here]), _unit(image.data[inside]))
    above = _on_voxel_grid(level.above(image.data), geometry)
    return _Cropped(_smoothed_crop(above, geometry, data.smoothing_iterations), cropped, geometry, level)


def label_on_working_grid(label: npt.NDArray[np.uint8], geometry: Geometry) -> npt.NDArray[np.uint8]:
    """A mask or segmentation (X, Y, Z) of the file on the working grid, as ``prepare`` brings it there: nearest voxels."""
    return _downsample(_cropped(label, geometry), geometry)


def _cropped(label: npt.NDArray[Any], geometry: Geometry) -> npt.NDArray[Any]:
    return grid.take(_on_voxel_grid(label, geometry), geometry.crop_start, geometry.volume_shape)


def background_of(image: npt.NDArray[np.float32], brain: npt.NDArray[np.bool_]) -> np.float32:
    """Intensity of what is no brain: the median outside of ``brain``, or the least of all where everything is brain."""
    outside = image[~brain]
    return np.float32(np.median(outside) if outside.size else image.min())


def _unit(brain: npt.NDArray[np.float32]) -> np.float32:
    """A power of two (division is exact) with which intensities span about 1000: the flow takes tiny ones for flat."""
    span = float(np.subtract(*np.percentile(brain, (99, 1)))) if brain.size else 0.0
    return np.float32(2.0 ** round(np.log2(span / 1000)) if span > 0 else 1.0)


def _on_voxel_grid(array: npt.NDArray[Any], geometry: Geometry) -> npt.NDArray[Any]:
    array = grid.reorient(grid.take_field(array, geometry), geometry.orientation, geometry.working_orientation)
    if geometry.voxel_step == (1.0, 1.0, 1.0):
        return array
    resampled = _resample(array, geometry.voxel_step, geometry.resampled_shape, geometry.resample_start)
    return np.clip(resampled, array.min(), array.max())  # no negative intensities around bright edges


def _smoothed_crop(array: npt.NDArray[np.float32], geometry: Geometry, iterations: int) -> npt.NDArray[np.float32]:
    """Curvature flow, then crop. A flow step reaches one voxel far, so voxels beyond a margin of that many are left out."""
    ends = zip(geometry.crop_start, geometry.volume_shape, strict=True)
    near = tuple(slice(max(0, start - iterations), start + size + iterations) for start, size in ends)
    smooth = array[near]
    if iterations:
        image = _itk(smooth)
        image.SetSpacing(geometry.voxel_size_mm)
        smooth = _array(sitk.CurvatureFlow(image, timeStep=FLOW_TIME_STEP, numberOfIterations=iterations))
    x, y, z = (start - part.start for start, part in zip(geometry.crop_start, near, strict=True))
    return grid.take(smooth, (x, y, z), geometry.volume_shape)


def _downsample(array: npt.NDArray[Any], geometry: Geometry) -> npt.NDArray[Any]:
    if geometry.rescale_factor == 1:
        return np.ascontiguousarray(array)
    factor = (geometry.rescale_factor,) * 3
    return np.ascontiguousarray(_resample(array, factor, geometry.working_shape, geometry.sample_start))


def _resample(
    array: npt.NDArray[Any], step: tuple[float, ...], shape: tuple[int, int, int], start: tuple[float, ...]
) -> npt.NDArray[Any]:
    """Sample from ``start`` on, at distance ``step`` (voxels): cubic B-spline for images, nearest for labels; 0 outside."""
    resampler = sitk.ResampleImageFilter()
    resampler.SetInterpolator(sitk.sitkBSpline if array.dtype == np.float32 else sitk.sitkNearestNeighbor)
    resampler.SetSize(shape)
    resampler.SetOutputSpacing(step)
    resampler.SetOutputOrigin(start)
    return _array(resampler.Execute(_itk(array)))


def _itk(array: npt.NDArray[Any]) -> sitk.Image:
    return sitk.GetImageFromArray(array.T)  # ITK counts axes the other way


def _array(image: sitk.Image) -> npt.NDArray[Any]:
    return sitk.GetArrayFromImage(image).T
