"""The box around a phantom's brain in millimetres, and smooth random fields over it.

Axes: x grows to the subject's left, y to the back, z upwards (LPS); the origin lies between the deep nuclei. A field's
coefficients sit on a lattice in millimetres that no voxel size moves, so a subject is the same brain at 1 and at 2 mm.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage

BOX_MM = (160.0, 192.0, 100.0)
MARGIN_MM = 24.0
SPLINE_NOISE_DEVIATION = (151.0 / 315.0) ** 1.5
"""Standard deviation of a 3D cubic B-spline whose coefficients are white noise of variance 1."""


@dataclass(frozen=True)
class Grid:
    """Voxel centres of a box of ``box_mm`` around the origin; ``shape`` is (X, Y, Z)."""

    voxel_mm: float
    box_mm: tuple[float, float, float] = BOX_MM

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along each axis."""
        x, y, z = (round(length / self.voxel_mm) for length in self.box_mm)
        return x, y, z

    @cached_property
    def axes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Coordinates in mm along each axis."""
        x, y, z = (_centres(n, self.voxel_mm) for n in self.shape)
        return x, y, z

    @cached_property
    def mesh(self) -> np.ndarray:
        """Coordinates of every voxel, (3, X, Y, Z) float32, in mm."""
        return np.stack(np.meshgrid(*self.axes, indexing="ij"))


def _centres(count: int, voxel_mm: float) -> np.ndarray:
    return ((np.arange(count) - (count - 1) / 2) * voxel_mm).astype(np.float32)


def lattice_noise(rng: np.random.Generator, spacing_mm: float, band: bool = False) -> np.ndarray:
    """White coefficients of a spline field with ``spacing_mm``; ``band`` takes the long waves out (unit variance)."""
    counts = [int(np.ceil((length + 2 * MARGIN_MM) / spacing_mm)) + 4 for length in BOX_MM]
    coefficients = rng.standard_normal(counts, dtype=np.float32)
    if band:
        coefficients -= ndimage.gaussian_filter(coefficients, 1.0)
        coefficients /= coefficients.std()
    return coefficients


def spline_field(coefficients: np.ndarray, spacing_mm: float, grid: Grid) -> np.ndarray:
    """Cubic B-spline of lattice ``coefficients`` on ``grid``: (X, Y, Z) float32.

    Written as shifted sums along one axis after the other: the same bytes whatever the number of threads.
    """
    field = coefficients
    for axis in (2, 1, 0):
        field = _interpolate(field, axis, grid.axes[axis], spacing_mm)
    return field


def _interpolate(field: np.ndarray, axis: int, centres: np.ndarray, spacing_mm: float) -> np.ndarray:
    count = field.shape[axis]
    position = centres.astype(np.float64) / spacing_mm + (count - 1) / 2
    first = np.floor(position).astype(int) - 1
    weights = _taps(position - np.floor(position))
    along = [1, 1, 1]
    along[axis] = len(centres)
    total = np.zeros([len(centres) if a == axis else n for a, n in enumerate(field.shape)], np.float32)
    for shift, weight in enumerate(weights):
        total += np.take(field, first + shift, axis=axis) * weight.astype(np.float32).reshape(along)
    return total


def _taps(fraction: np.ndarray) -> tuple[np.ndarray, ...]:
    f = fraction
    return (1 - f) ** 3 / 6, (3 * f**3 - 6 * f**2 + 4) / 6, (-3 * f**3 + 3 * f**2 + 3 * f + 1) / 6, f**3 / 6


def smooth_noise(rng: np.random.Generator, spacing_mm: float, grid: Grid) -> np.ndarray:
    """Smooth random field of unit variance with correlation over about ``spacing_mm``: (X, Y, Z) float32."""
    return spline_field(lattice_noise(rng, spacing_mm) / np.float32(SPLINE_NOISE_DEVIATION), spacing_mm, grid)


@dataclass(frozen=True)
class Canvas:
    """The voxels of ``grid`` that matter, ``inside`` (X, Y, Z) bool; everything is computed on them as vectors (N,)."""

    grid: Grid
    inside: np.ndarray

    def noise(self, rng: np.random.Generator, spacing_mm: float) -> np.ndarray:
        """``smooth_noise`` at the voxels: (N,) float32."""
        return smooth_noise(rng, spacing_mm, self.grid)[self.inside]

    def paint(self, values: np.ndarray) -> np.ndarray:
        """Put (N,) ``values`` on the grid, zero elsewhere: (X, Y, Z) of the same dtype."""
        painted = np.zeros(self.grid.shape, values.dtype)
        painted[self.inside] = values
        return painted


def soft_step(distance_mm: np.ndarray, voxel_mm: float) -> np.ndarray:
    """Share of a voxel that lies inside a surface at signed ``distance_mm`` (positive inside): partial volume in [0, 1]."""
    return np.clip(distance_mm / voxel_mm + 0.5, 0.0, 1.0, dtype=np.float32)
