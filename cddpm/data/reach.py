"""What of a brain lies beyond the window that a model was made with, and the same working grid continued over all of it.

The window stays where it is. Slices are added below and above it, rows and columns around it, until no voxel of the brain mask
is left out; they take the window's scale of intensities, so that what lies in the window is what the window alone makes of it,
bit for bit. Only a spline knows the end of its array: within some voxels of it the window's own samples are kept.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cddpm.data.geometry import ROUNDING, SPLINE_REACH, Geometry, Shape, axes_along, field_of_view, planes

Bools = npt.NDArray[np.bool_]
SPARE = 4
"""Tries, each with a plane more at every end."""


@dataclass(frozen=True)
class _Axis:
    """One axis of a continued grid; see ``Geometry``. ``added`` are voxels of the field, at its two ends."""

    beyond: tuple[int, int]
    added: tuple[int, int]
    resampled: int
    crop: int
    working: int
    starts: tuple[float, int, float]


def reaching(geometry: Geometry, brain: Bools, smoothing_iterations: int) -> Geometry:
    """``geometry`` continued over all of ``brain`` (X, Y, Z of the file), or as it is where its window holds it all."""
    for spare in range(SPARE):
        found = _reaching(geometry, brain, smoothing_iterations, spare) if spare else geometry
        if not (brain & ~field_of_view(found)).any():
            return found
    raise AssertionError(geometry)


def _reaching(geometry: Geometry, brain: Bools, smoothing_iterations: int, spare: int) -> Geometry:
    """``spare`` - 1: planes more than the brain has, for one that lies in the middle between two voxels."""
    around = smoothing_iterations + SPLINE_REACH
    ends = [(low - spare + 1, high + spare - 1) for low, high in planes(geometry, brain)]
    axes = [_continued(geometry, axis, each, around) for axis, each in enumerate(ends)]
    field = _grown(geometry.field, geometry, [axis.added for axis in axes]) if geometry.field else None
    x, y, z = axes
    return replace(
        geometry,
        field=field,
        resampled_shape=(x.resampled, y.resampled, z.resampled),
        volume_shape=(x.crop, y.crop, z.crop),
        working_shape=(x.working, y.working, z.working),
        beyond=(x.beyond, y.beyond, z.beyond),
        starts=(
            (x.starts[0], y.starts[0], z.starts[0]),
            (x.starts[1], y.starts[1], z.starts[1]),
            (x.starts[2], y.starts[2], z.starts[2]),
        ),
    )


def _continued(geometry: Geometry, axis: int, brain: tuple[int, int], around: int) -> _Axis:
    """``brain``: its first and last plane on the resampled grid; ``around``: voxels beyond the crop that bear on it."""
    start, size, factor = geometry.crop_start[axis], geometry.volume_shape[axis], geometry.rescale_factor
    missing = (max(0, start - brain[0]), max(0, brain[1] + 1 - start - size))
    before, behind = (math.ceil(voxels / factor - ROUNDING) for voxels in missing)
    more = [math.ceil(samples * factor - ROUNDING) for samples in (before, behind)]
    samples, step = geometry.resampled_shape[axis], geometry.voxel_step[axis]
    fresh = (
        max(0, around + more[0] - start) if before and geometry.field else 0,
        max(0, start + size + more[1] + around - samples) if behind and geometry.field else 0,
    )
    added = (math.ceil(fresh[0] * step - ROUNDING), math.ceil(fresh[1] * step - ROUNDING))
    return _Axis(
        beyond=(before, behind),
        added=added,
        resampled=samples + sum(fresh),
        crop=size + sum(more),
        working=geometry.working_shape[axis] + before + behind,
        starts=(
            geometry.resample_start[axis] + added[0] - fresh[0] * step,
            start - more[0] + fresh[0],
            geometry.sample_start[axis] + more[0] - before * factor,
        ),
    )


def _grown(field: tuple[Shape, Shape], geometry: Geometry, added: list[tuple[int, int]]) -> tuple[Shape, Shape]:
    """``field`` with so many voxels more at the two ends of each axis of the working grid."""
    first, shape = list(field[0]), list(field[1])
    for (own, flipped), ends in zip(axes_along(geometry.orientation, geometry.working_orientation), added, strict=True):
        first[own] -= ends[1] if flipped else ends[0]
        shape[own] += sum(ends)
    return (first[0], first[1], first[2]), (shape[0], shape[1], shape[2])
