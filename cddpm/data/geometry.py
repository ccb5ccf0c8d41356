"""The way of a volume from its file's grid to the working grid, kept so that results can be brought back.

file --cut or pad--> field --reorient--> oriented --resample--> voxel_size_mm --centred crop or pad--> volume_shape
--downsample--> working grid. Voxel i of the coarser axis lies at ``origin + step * i`` of the finer. The centre of the field is
kept, but by downsampling to ``rescale_grid: published`` where sizes do not divide.

The field is the box around a brain that is looked at: the brain's mask alone decides it, not how much of its background a file
holds. It may begin before a file's first voxel and end behind its last one; what lies there is background.

What is looked at beyond that crop, the window of a model, continues its working grid (``data.reach``).
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cddpm.config import ROUNDING, DataConfig, RescaleGrid
from cddpm.errors import DataError

if TYPE_CHECKING:
    from cddpm.data.volume import Volume


Shape = tuple[int, int, int]
Triple = tuple[float, float, float]
Beyond = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
STRAY_VOXELS = 0.001
"""Fraction of a mask's voxels that may lie beyond each face of the box whose centre counts: strays do not move a brain."""


def box_around(brain: npt.NDArray[np.bool_], needed: Sequence[float], margin: Sequence[float]) -> tuple[Shape, Shape]:
    """(first voxel, shape) of the field along the axes of ``brain`` (X, Y, Z), which holds a voxel at least.

    Its centre is that of the box of all voxels but ``STRAY_VOXELS`` on each side. It holds all of them and ``margin`` voxels
    more, but no more than ``needed`` (infinity, say) + 2 ``margin`` voxels.
    """
    found = []
    for axis in range(3):
        counts = np.count_nonzero(brain, axis=tuple(other for other in range(3) if other != axis))
        found.append(_along(counts, needed[axis], math.ceil(margin[axis])))
    (x, y, z), (i, j, k) = zip(*found, strict=True)
    return (x, y, z), (i, j, k)


def _along(counts: npt.NDArray[np.intp], needed: float, margin: int) -> tuple[int, int]:
    """(first voxel, size) for the brain voxels per plane, ``counts``."""
    some, total = np.flatnonzero(counts), int(counts.sum())
    low = int(np.searchsorted(np.cumsum(counts), STRAY_VOXELS * total, "right"))
    high = len(counts) - int(np.searchsorted(np.cumsum(counts[::-1]), STRAY_VOXELS * total, "right"))
    grow = max(low - int(some[0]), int(some[-1]) + 1 - high) + margin
    wide = high - low + 2 * grow
    if math.isfinite(needed):
        grow -= max(0, wide - math.ceil(needed) - 2 * margin) // 2
    return low - grow, high - low + 2 * grow


def take(array: npt.NDArray[Any], start: Shape, shape: Shape) -> npt.NDArray[Any]:
    """The field of ``array`` (X, Y, Z), 0 where it lies outside of it."""
    result = np.zeros(shape, array.dtype)
    there, here = _windows(array.shape, start, shape)
    result[here] = array[there]
    return result


def within(start: Shape, shape: Shape, array: Shape) -> tuple[slice, ...]:
    """The part of an array with the shape ``array`` that lies in the field."""
    return _windows(array, start, shape)[0]


def put_back(field: npt.NDArray[Any], start: Shape, shape: Shape) -> npt.NDArray[Any]:
    """The array of ``shape`` that holds ``field`` where it was taken, and 0 elsewhere."""
    result = np.zeros(shape, field.dtype)
    there, here = _windows(shape, start, field.shape)
    result[there] = field[here]
    return result


def _windows(
    array: Sequence[int], start: Sequence[int], field: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where a field lies in its array, and the same voxels in the field."""
    ends = [(max(0, s), max(0, s, min(n, s + f))) for n, s, f in zip(array, start, field, strict=True)]
    there = tuple(slice(a, b) for a, b in ends)
    return there, tuple(slice(a - s, b - s) for (a, b), s in zip(ends, start, strict=True))


CUT_FRACTION = 0.01
"""A smaller part of a brain or of a lesion outside of the field of view is not worth a word."""
SPLINE_REACH = 3
"""Voxels beyond which a cubic B-spline hardly feels the end of an array."""
_OPPOSITE = dict(zip("LRAPIS", "RLPASI", strict=True))


@dataclass(frozen=True)
class Geometry:
    """Everything needed to undo preparation. Plain numbers and words: ``to_dict`` is JSON."""

    shape: Shape
    """Of the file."""
    affine: tuple[tuple[float, ...], ...]
    """(4, 4) of the file, voxel index to mm (RAS+)."""
    orientation: str
    """Axis codes of the file."""
    working_orientation: str
    voxel_size_mm: tuple[float, float, float]
    """After reorientation and resampling, before downsampling."""
    voxel_step: tuple[float, float, float]
    """Voxels of the file per voxel after resampling to ``voxel_size_mm``; 1 where nothing is resampled."""
    resampled_shape: Shape
    volume_shape: Shape
    """After cropping or padding."""
    rescale_factor: float
    working_shape: Shape
    rescale_grid: RescaleGrid = "centred"
    field: tuple[Shape, Shape] | None = None
    """(first voxel, shape) along the file's axes of what is looked at, a box around the brain; None: the whole file."""
    beyond: Beyond | None = None
    """Working voxels before and behind the model's window along each axis, all of them looked at; None: the window alone."""
    starts: tuple[Triple, Shape, Triple] | None = None
    """Where, beyond a window, the grids begin: the resampled one on the field, the crop on that, the working one on the crop.
    None: centred."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data. What is looked at beyond a window is named where there is any."""
        return {name: value for name, value in asdict(self).items() if value is not None or name == "field"}

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> "Geometry":
        """The inverse of ``to_dict``, also after a way through JSON."""
        return cls(**{name: _tuples(value) for name, value in raw.items()})

    @property
    def oriented_shape(self) -> Shape:
        """Shape of the field after reorientation."""
        shape = self.field[1] if self.field else self.shape
        x, y, z = (shape[axis] for axis, _ in axes_along(self.orientation, self.working_orientation))
        return x, y, z

    @property
    def resample_start(self) -> Triple:
        """Index on the field's axes of the first resampled voxel."""
        if self.starts:
            return self.starts[0]
        sizes = zip(self.oriented_shape, self.voxel_step, self.resampled_shape, strict=True)
        return _three([sample_origin(size, step, samples) for size, step, samples in sizes])

    @property
    def crop_start(self) -> Shape:
        """Index of the first voxel of the crop in the resampled grid; below 0 where it is padded."""
        if self.starts:
            return self.starts[1]
        return _three(
            [_first(*crop_window(*sizes)) for sizes in zip(self.resampled_shape, self.volume_shape, strict=True)]
        )

    @property
    def sample_start(self) -> Triple:
        """Index of the first working voxel in the crop."""
        if self.starts:
            return self.starts[2]
        factor, sizes = self.rescale_factor, zip(self.volume_shape, self.working_shape, strict=True)
        return _three([sample_origin(size, factor, samples, self.rescale_grid) for size, samples in sizes])

    @property
    def window(self) -> tuple[slice, slice, slice]:
        """The model's window in the working grid, along (X, Y, Z): all of it, but for what lies ``beyond``."""
        x, y, z = (
            slice(before, size - behind)
            for (before, behind), size in zip(self.beyond or ((0, 0),) * 3, self.working_shape, strict=True)
        )
        return x, y, z

    @property
    def working_voxel_size_mm(self) -> tuple[float, float, float]:
        """Along (X, Y, Z) of the working grid."""
        x, y, z = (size * self.rescale_factor for size in self.voxel_size_mm)
        return x, y, z


def plan(scan: "Volume", data: DataConfig, brain: npt.NDArray[np.bool_] | None = None) -> Geometry:
    """The way that ``scan`` takes with the settings ``data``: centred on ``brain`` (X, Y, Z), or on the file without it.

    Where ``data`` leave the number of slices to the brain, they are as many as hold it all, or the file without it. Raises
    ``VolumeFileError``, before any work, where its header's voxel sizes make a grid of far too many voxels, or of none.
    """
    from cddpm.data.volume import axis_codes  # nibabel: who has a geometry needs it no more

    stored = axis_codes(scan.affine)
    working = stored if data.orientation == "stored" else data.orientation
    axes = [axis for axis, _ in axes_along(stored, working)]
    sizes = [scan.voxel_size_mm[axis] for axis in axes]
    step = [_voxel_step(size, data.voxel_size_mm) for size in sizes]
    _check_size(scan, [scan.data.shape[axis] / s for axis, s in zip(axes, step, strict=True)])
    looked_at = None
    if brain is not None and data.centre == "brain" and brain.any():
        sizes_wanted = [math.inf if n is None else n for n in data.volume_shape]
        needed = [sizes_wanted[axes.index(axis)] * step[axes.index(axis)] for axis in range(3)]
        margin = [(data.smoothing_iterations + SPLINE_REACH) * step[axes.index(axis)] for axis in range(3)]
        looked_at = box_around(brain, needed, margin)
    shape = looked_at[1] if looked_at else scan.data.shape
    resampled = [_resampled_size(shape[axis], s) for axis, s in zip(axes, step, strict=True)]
    made = Geometry(
        shape=_three(scan.data.shape),
        affine=tuple(tuple(float(n) for n in row) for row in scan.affine),
        orientation=stored,
        working_orientation=working,
        voxel_size_mm=_three([size * s for size, s in zip(sizes, step, strict=True)]),
        voxel_step=_three(step),
        resampled_shape=_three(resampled),
        volume_shape=_sized(data, 1),
        rescale_factor=data.rescale_factor,
        working_shape=_working(data, _sized(data, 1)),
        rescale_grid=data.rescale_grid,
        field=looked_at,
    )
    return made if data.volume_shape[2] is not None else _with_all_slices(made, data, brain)


def _sized(data: DataConfig, slices: int) -> Shape:
    """The crop that ``data`` ask for; ``slices`` working ones where each brain decides."""
    x, y, z = data.volume_shape
    return x, y, math.ceil(slices * data.rescale_factor - ROUNDING) if z is None else z


def _working(data: DataConfig, crop: Shape) -> Shape:
    return _three([data.working_size(size) for size in crop])


def _with_all_slices(geometry: Geometry, data: DataConfig, brain: npt.NDArray[np.bool_] | None) -> Geometry:
    """With as few slices as hold all of ``brain``, or of the file without it."""
    everything = (0, geometry.resampled_shape[2] - 1)
    low, high = everything if brain is None or not brain.any() else planes(geometry, brain)[2]
    crop = _sized(data, math.ceil((high - low + 1) / data.rescale_factor - ROUNDING))
    made = replace(geometry, volume_shape=crop, working_shape=_working(data, crop))
    x, y, _ = made.crop_start
    first = low - (crop[2] - (high - low + 1)) // 2
    return replace(made, starts=(made.resample_start, (x, y, first), made.sample_start))


def planes(geometry: Geometry, brain: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and last plane of ``brain`` (X, Y, Z of the file; not empty) along each axis of the resampled grid.

    Beyond the field, which the grid covers, they lie below 0 or above its size. Planes in the middle between two voxels count
    to the outer one.
    """
    found = []
    field = geometry.field or ((0, 0, 0), geometry.shape)
    for axis, (own, flipped) in enumerate(axes_along(geometry.orientation, geometry.working_orientation)):
        some = np.flatnonzero(brain.any(tuple(other for other in range(3) if other != own))) - field[0][own]
        ends = (int(some[0]), int(some[-1]))
        low, high = (field[1][own] - 1 - ends[1], field[1][own] - 1 - ends[0]) if flipped else ends
        found.append((_nearest(geometry, axis, low, -ROUNDING), _nearest(geometry, axis, high, ROUNDING)))
    return found


def _nearest(geometry: Geometry, axis: int, plane: int, aside: float) -> int:
    """The resampled voxel that comes back to a plane of the field, moved ``aside`` a little."""
    position = (plane - geometry.resample_start[axis]) / geometry.voxel_step[axis]
    if 0 <= plane < geometry.oriented_shape[axis]:
        position = min(max(position, 0), geometry.resampled_shape[axis] - 1)
    return math.floor(position + 0.5 + aside)


def field_window(geometry: Geometry) -> tuple[slice, ...]:
    """The part of a file's array that is looked at."""
    return within(*geometry.field, geometry.shape) if geometry.field else (slice(None),) * 3


def take_field(array: npt.NDArray[Any], geometry: Geometry) -> npt.NDArray[Any]:
    """What of a file's ``array`` (X, Y, Z) is looked at; 0 where that lies beyond the file."""
    return take(array, *geometry.field) if geometry.field else array


def _check_size(scan: "Volume", resampled: Sequence[float]) -> None:
    """``resampled``: size of the grid of the model's voxels that ``scan`` would be brought to."""
    from cddpm.data.volume import MOST_VOXELS, VolumeFileError, unit

    if min(resampled) >= 0.5 and math.prod(resampled) <= MOST_VOXELS:
        return
    field_mm = np.multiply(scan.data.shape, scan.voxel_size_mm)
    voxels, sizes, field, grid = (
        " x ".join(f"{n:.0f}" if n >= 100 else f"{n:.4g}" for n in numbers)
        for numbers in (scan.data.shape, scan.voxel_size_mm, field_mm, resampled)
    )
    of_unit = f", in {unit(scan.header)[0]}" if scan.header is not None else ""
    found = f"its header makes a field of {field} mm ({voxels} voxels of {sizes} mm{of_unit})"
    allowed = f"{grid} voxels of the model are no scan of a head; correct the voxel size (pixdim, sform) or its unit (xyzt_units)"
    raise VolumeFileError(str(scan.path), "field-of-view", found, allowed)


def reorient(array: npt.NDArray[Any], stored: str, working: str) -> npt.NDArray[Any]:
    """View of ``array`` (X, Y, Z) with axes pointing to ``stored`` turned so that they point to ``working``."""
    axes = axes_along(stored, working)
    turned = array.transpose([axis for axis, _ in axes])
    return turned[tuple(slice(None, None, -1 if flipped else None) for _, flipped in axes)]


def reorient_sizes(sizes: Sequence[float], stored: str, working: str) -> tuple[float, float, float]:
    """Sizes along the axes of an array, after ``reorient``."""
    x, y, z = (sizes[axis] for axis, _ in axes_along(stored, working))
    return x, y, z


def _first(taken: slice, put: slice) -> int:
    """Index of the target's first voxel on the source axis, of a ``crop_window``."""
    return int(taken.start - put.start)


def crop_window(size: int, target: int) -> tuple[slice, slice]:
    """(what is taken of the source axis, where it is put on the target axis), centred.

    Of an odd difference the larger half is at the start (as TorchIO).
    """
    cut, pad = -(-max(size - target, 0) // 2), -(-max(target - size, 0) // 2)
    kept = min(size, target)
    return slice(cut, cut + kept), slice(pad, pad + kept)


def sample_origin(size: int, step: float, samples: int, grid: RescaleGrid = "centred") -> float:
    """Source index of sample 0 of ``samples`` at distance ``step`` over ``size`` voxels.

    ``centred``: the samples share their centre with the voxels. ``published``: the voxel of sample 0 begins where voxel 0
    does, as in TorchIO 0.18.73, whatever is left at the end.
    """
    match grid:
        case "centred":
            return ((size - 1) - (samples - 1) * step) / 2
        case "published":
            return (step - 1) / 2
    raise AssertionError(grid)


def to_input_grid(array: npt.NDArray[Any], geometry: Geometry, order: int) -> npt.NDArray[Any]:
    """Bring ``array`` (X, Y, Z) from the working grid back to the file's shape and orientation.

    ``order`` 0 takes the nearest voxel and keeps the type (masks); 1 interpolates linearly as float32 (maps). What was
    cropped away is 0. Raises ``DataError`` when the array is not on the working grid or the order is another.
    """
    if array.shape != geometry.working_shape:
        raise DataError(f"array of shape {array.shape} is not on the working grid {geometry.working_shape}")
    if order not in (0, 1):
        raise DataError(f"interpolation order {order}: allowed are 0 (nearest) and 1 (linear)")
    factor = (geometry.rescale_factor,) * 3
    result = _upsample(array, geometry.volume_shape, factor, geometry.sample_start, order)
    result = put_back(result, geometry.crop_start, geometry.resampled_shape)
    result = _upsample(result, geometry.oriented_shape, geometry.voxel_step, geometry.resample_start, order)
    result = np.ascontiguousarray(reorient(result, geometry.working_orientation, geometry.orientation))
    return put_back(result, geometry.field[0], geometry.shape) if geometry.field else result


def field_of_view(geometry: Geometry) -> npt.NDArray[np.bool_]:
    """Where (X, Y, Z) of the file the working grid reaches: ``to_input_grid`` of ones, axis by axis."""
    lines = [_seen(geometry, axis) for axis in range(3)]
    seen = lines[0][:, None, None] & lines[1][:, None] & lines[2]
    seen = np.ascontiguousarray(reorient(seen, geometry.working_orientation, geometry.orientation))
    return put_back(seen, geometry.field[0], geometry.shape) if geometry.field else seen


def _seen(geometry: Geometry, axis: int) -> npt.NDArray[np.bool_]:
    """Of one axis of the field."""
    crop = np.ones((geometry.volume_shape[axis], 1, 1), np.uint8)
    line = put_back(crop, (geometry.crop_start[axis], 0, 0), (geometry.resampled_shape[axis], 1, 1))
    step, start = (geometry.voxel_step[axis], 1.0, 1.0), (geometry.resample_start[axis], 0.0, 0.0)
    return _upsample(line, (geometry.oriented_shape[axis], 1, 1), step, start, 0).ravel() > 0


def _upsample(
    array: npt.NDArray[Any], shape: Shape, step: Sequence[float], start: Sequence[float], order: int
) -> npt.NDArray[Any]:
    for axis in range(3):
        samples, size = array.shape[axis], shape[axis]
        if samples == size and step[axis] == 1:
            continue
        array = _take(array, axis, (np.arange(size) - start[axis]) / step[axis], order)
    return array


def _take(array: npt.NDArray[Any], axis: int, positions: npt.NDArray[np.floating[Any]], order: int) -> npt.NDArray[Any]:
    positions = np.clip(positions, 0, array.shape[axis] - 1)
    if order == 0:
        return np.take(array, np.floor(positions + 0.5).astype(np.intp), axis)
    below = np.floor(positions).astype(np.intp)
    weight = (positions - below).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
    above = np.minimum(below + 1, array.shape[axis] - 1)
    low = np.take(array, below, axis).astype(np.float32)
    return low + weight * (np.take(array, above, axis).astype(np.float32) - low)


def axes_along(stored: str, working: str) -> list[tuple[int, bool]]:
    """Per axis of ``working``: (which stored axis, whether it runs the other way)."""
    found = []
    for code in working:
        flipped = code not in stored
        found.append((stored.index(_OPPOSITE[code] if flipped else code), flipped))
    return found


def _voxel_step(size_mm: float, wanted_mm: float | None) -> float:
    """Headers are rounded: up to 1 % of difference is no reason to resample."""
    return 1.0 if wanted_mm is None or abs(size_mm / wanted_mm - 1) <= 0.01 else wanted_mm / size_mm


def _resampled_size(size: int, step: float) -> int:
    return size if step == 1 else max(1, math.floor(size / step + 1e-6))


def _three(values: Sequence[Any]) -> tuple[Any, Any, Any]:
    x, y, z = values
    return x, y, z


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value
