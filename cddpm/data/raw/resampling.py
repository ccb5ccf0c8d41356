"""Voxels in space: turned, placed and sampled.

A ``Grid`` says by its affine where its voxels lie, and the affine may be any: oblique, scaled, sheared. To move a scan is to
multiply its affine, which touches no voxel. Sampling works in voxel indices, so that ITK, whose
images know right angles only, needs not know of the affine.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813
from scipy import ndimage

from cddpm.data.geometry import Shape
from cddpm.data.raw.head import Grid

Affine = npt.NDArray[np.float64]
FINER = 1.15
"""Voxels that are finer than the ones they are sampled at by this are smoothed first."""
SAME_VOXELS = 1e-3
"""Voxels by which grids may lie apart and still be one: headers are float32."""


@dataclass(frozen=True)
class Lattice:
    """Where to sample: ``shape`` (X, Y, Z), ``affine`` (4, 4) from voxel index to mm (RAS+)."""

    shape: Shape
    affine: Affine


def inverse(affine: Affine) -> Affine:
    """The way back."""
    return np.asarray(np.linalg.inv(affine), dtype=np.float64)


def voxel_sizes(affine: Affine) -> npt.NDArray[np.float64]:
    """(3,) lengths in mm of the three axes."""
    return np.asarray(np.linalg.norm(affine[:3, :3], axis=0))


def voxel_ml(affine: Affine) -> float:
    """Volume of one voxel."""
    return float(abs(np.linalg.det(affine[:3, :3]))) / 1000


def lattice_of(grid: Grid) -> Lattice:
    """The voxels of ``grid``."""
    x, y, z = grid.data.shape
    return Lattice((x, y, z), grid.affine)


def moved(grid: Grid, motion: Affine) -> Grid:
    """``grid`` with every point p (mm, RAS+) brought to ``motion`` p; no voxel is touched."""
    return replace(grid, affine=motion @ grid.affine)


def same_lattice(one: Grid | Lattice, other: Grid | Lattice) -> bool:
    """Whether the voxels of both are the same ones."""
    first, second = (lattice_of(each) if isinstance(each, Grid) else each for each in (one, other))
    return first.shape == second.shape and _apart(first, second) < SAME_VOXELS


def _apart(one: Lattice, other: Lattice) -> float:
    """Largest distance, in voxels of ``one``, between corners of the two."""
    corners = _corners(other.shape)
    there = np.linalg.solve(one.affine, other.affine) @ corners
    return float(np.abs(there - corners).max())


def _corners(shape: Shape) -> npt.NDArray[np.float64]:
    """(4, 8) homogeneous indices of the corner voxels."""
    return np.array([[i, j, k, 1.0] for i in (0, shape[0] - 1) for j in (0, shape[1] - 1) for k in (0, shape[2] - 1)]).T


def reoriented(grid: Grid, codes: str) -> Grid:
    """``grid`` with its axes permuted and flipped to the nearest of ``codes`` (``LPS``); no voxel moves in space."""
    signs = np.array([1.0 if code in "RAS" else -1.0 for code in codes])
    rows = [("RL", "AP", "SI").index(next(pair for pair in ("RL", "AP", "SI") if code in pair)) for code in codes]
    towards = signs[:, None] * (grid.affine[:3, :3] / voxel_sizes(grid.affine))[rows]
    axes = _assigned(np.abs(towards))
    flipped = tuple(axis for axis, old in enumerate(axes) if towards[axis, old] < 0)
    data = np.flip(grid.data.transpose(axes), flipped)
    back = np.zeros((4, 4))
    back[3, 3] = 1
    for new, old in enumerate(axes):
        back[old, new], back[old, 3] = (-1, grid.data.shape[old] - 1) if new in flipped else (1, 0)
    return Grid(np.ascontiguousarray(data), grid.affine @ back)


def _assigned(likeness: npt.NDArray[np.float64]) -> tuple[int, int, int]:
    """Per new axis the old one, each once, so that their likeness in all is greatest."""
    from scipy.optimize import linear_sum_assignment

    _, (x, y, z) = linear_sum_assignment(-likeness)
    return int(x), int(y), int(z)


def around(grid: Grid, codes: str, voxel_mm: float, through: npt.ArrayLike | None = None) -> Lattice:
    """Cubic voxels of ``voxel_mm`` along the axes of space, all whose centres lie in the field of ``grid``.

    One of them (or of those that would follow) is at the point ``through`` (mm); without it, at the first voxel of
    ``grid``, so that a grid which is such a lattice already gives itself.
    """
    steps = np.array([voxel_mm if code in "RAS" else -voxel_mm for code in codes])
    first = grid.affine[:3, 3] if through is None else np.asarray(through, dtype=np.float64)
    ends = _corners(grid.data.shape) + np.where(_corners(grid.data.shape) > 0, 0.5, -0.5)
    ends[3] = 1
    there = ((grid.affine @ ends)[:3] - first[:, None]) / steps[:, None]
    low, high = np.ceil(there.min(1) - SAME_VOXELS), np.floor(there.max(1) + SAME_VOXELS)
    affine = np.diag([*steps, 1.0])
    affine[:3, 3] = first + low * steps
    x, y, z = (max(1, int(n)) for n in high - low + 1)
    return Lattice((x, y, z), affine)


def cubic(image: Grid, lattice: Lattice) -> Grid:
    """An image at ``lattice`` by cubic B-spline, float32, no value beyond those of ``image``; its least value outside of it."""
    low, high = float(image.data.min()), float(image.data.max())
    data = np.clip(_sampled(image, lattice, sitk.sitkBSpline, low), low, high)
    return Grid(data.astype(np.float32, copy=False), lattice.affine)


def linear(image: Grid, lattice: Lattice) -> Grid:
    """An image, or the share of a mask, at ``lattice``: float32, its least value outside of it."""
    return Grid(_sampled(image, lattice, sitk.sitkLinear, float(image.data.min())), lattice.affine)


def mask_at(mask: Grid, lattice: Lattice) -> Grid:
    """A mask at ``lattice``, uint8 {0, 1}: the voxels of which half or more lies inside."""
    if same_lattice(mask, lattice):
        return Grid(mask.data, lattice.affine)
    return Grid((share(mask, lattice) >= 0.5).astype(np.uint8), lattice.affine)


def share(mask: Grid, lattice: Lattice) -> npt.NDArray[np.float32]:
    """Share of a mask at each voxel of ``lattice``, (X, Y, Z) in [0, 1]: linear between voxel centres."""
    inside = Grid((mask.data > 0).astype(np.float32), mask.affine)
    return _sampled(inside, lattice, sitk.sitkLinear, 0.0)


def _sampled(image: Grid, lattice: Lattice, interpolator: int, outside: float) -> npt.NDArray[np.float32]:
    way = np.linalg.solve(image.affine, lattice.affine)
    data = _smoothed(np.asarray(image.data, dtype=np.float32), voxel_sizes(lattice.affine), voxel_sizes(image.affine))
    resampler = sitk.ResampleImageFilter()
    resampler.SetInterpolator(interpolator)
    resampler.SetSize(lattice.shape)
    resampler.SetDefaultPixelValue(outside)
    resampler.SetTransform(sitk.AffineTransform(way[:3, :3].ravel().tolist(), way[:3, 3].tolist()))
    return as_array(resampler.Execute(as_itk(data)))


def _smoothed(
    data: npt.NDArray[np.float32], wanted: npt.NDArray[np.float64], there: npt.NDArray[np.float64]
) -> npt.NDArray[np.float32]:
    """Gaussian against aliasing where voxels become larger (Cardoso et al. 2015, MICCAI, eq. 2)."""
    factor = float(wanted.mean()) / there
    deviations = np.where(factor > FINER, np.sqrt(np.maximum(factor**2 - 1, 0) / (8 * np.log(2))), 0)
    return ndimage.gaussian_filter(data, deviations) if deviations.any() else data


def as_itk(data: npt.NDArray[Any], voxel_mm: npt.ArrayLike = (1.0, 1.0, 1.0)) -> sitk.Image:
    """An ITK image of (X, Y, Z) with right angles, its first voxel at the origin."""
    image = sitk.GetImageFromArray(data.T)  # ITK counts axes the other way
    image.SetSpacing([float(n) for n in np.asarray(voxel_mm)])
    return image


def as_array(image: sitk.Image) -> npt.NDArray[Any]:
    """(X, Y, Z) of an ITK image."""
    return np.ascontiguousarray(sitk.GetArrayViewFromImage(image).T)
