"""A cartoon brain: folded cortex, white matter, ventricles, deep nuclei, cerebellum and brain stem as tissue shares.

Everything is a signed distance in mm (positive inside) at smoothly bent coordinates; shares come from distances by
``soft_step``, which is the partial volume effect. Sulci are the zero sheets of a band-passed noise that is nearly constant
along the surface's normal; the depth below the pia is the distance to the nearest of outer surface, sulcus and fissure,
and the cortex is the band of constant thickness below the pia. The template's proportions are drawn by hand after an axial
atlas, flattened along z so that the whole brain fits into 100 mm.

The box around the brain has axes x to the subject's left, y to the back, z upwards (LPS); the origin lies between the deep
nuclei. The coefficients of smooth random fields sit on a lattice in millimetres that no voxel size moves, so a subject is the
same brain at 1 and at 2 mm.

Letters: N voxels of the canvas; ``points`` (3, N) float32, template coordinates in mm (x left, y back, z up). The template's
parts take points (3, ...) of any shape; every distance has the shape (...).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

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


Point = tuple[float, float, float]
RodEnd = tuple[float, float, float, float]
"""x, y, z and the radius, in mm."""


@dataclass(frozen=True)
class Lobes:
    """Signed distances in mm to the outer surfaces."""

    cerebrum: np.ndarray
    cerebellum: np.ndarray
    stem: np.ndarray


def ellipsoid(points: np.ndarray, centre: Point, radii: Point) -> np.ndarray:
    """Signed distance to an ellipsoid, first order (exact on a sphere)."""
    offset = [p - np.float32(c) for p, c in zip(points, centre, strict=True)]
    scaled = [o / np.float32(r) for o, r in zip(offset, radii, strict=True)]
    tiny = np.float32(1e-8)  # keeps the centre finite: there the distance is the shortest radius
    norm = np.sqrt(scaled[0] ** 2 + scaled[1] ** 2 + scaled[2] ** 2 + tiny)
    a, b, c = ((s / np.float32(r)) ** 2 for s, r in zip(scaled, radii, strict=True))
    return norm * (1 - norm) / np.sqrt(a + b + c + tiny / np.float32(min(radii) ** 2))


def capsule(points: np.ndarray, start: RodEnd, end: RodEnd) -> np.ndarray:
    """Signed distance to a round-ended rod whose radius goes from one end's to the other's."""
    axis = np.subtract(end[:3], start[:3]).astype(np.float32)
    offset = [p - np.float32(s) for p, s in zip(points, start[:3], strict=True)]
    length = np.float32((axis**2).sum())
    along = np.clip((offset[0] * axis[0] + offset[1] * axis[1] + offset[2] * axis[2]) / length, 0, 1)
    radius = np.float32(start[3]) + along * np.float32(end[3] - start[3])
    return radius - np.sqrt(sum((o - along * a) ** 2 for o, a in zip(offset, axis, strict=True)))


def smooth_union(one: np.ndarray, other: np.ndarray, width_mm: float) -> np.ndarray:
    """Union of two shapes whose seam is filled over ``width_mm`` (polynomial smooth maximum)."""
    near = np.maximum(width_mm - np.abs(one - other), 0) / width_mm
    return np.maximum(one, other) + near * near * np.float32(width_mm / 4)


def mirrored(points: np.ndarray) -> np.ndarray:
    """The points with both sides laid onto the left one."""
    return np.stack([np.abs(points[0]), points[1], points[2]])


def lobes(points: np.ndarray) -> Lobes:
    """Outer surfaces of cerebrum (with temporal lobes), cerebellum and brain stem."""
    x, y, z = sided = mirrored(points)
    tentorium = -11 - 0.18 * (y - 25) - 0.10 * x
    behind = np.maximum((z - tentorium) * np.float32(0.95), (10 + 0.4 * x - y) * np.float32(0.8))
    temporal = ellipsoid(np.stack([x, y + 0.35 * (z + 22), z]), (43, -2, -21), (23, 42, 26))
    cerebrum = np.minimum(np.maximum(_hemispheres(sided), temporal), behind)
    cerebellum = ellipsoid(sided, (20, 45, -28), (35, 32, 20))
    cerebellum = np.minimum(cerebellum, (tentorium - z) * np.float32(0.95))
    stem = np.maximum(
        capsule(points, (0, 5, -8, 13), (0, 13, -34, 13.5)), capsule(points, (0, 13, -34, 12), (0, 21, -60, 8))
    )
    return Lobes(cerebrum, cerebellum, stem)


def _hemispheres(sided: np.ndarray) -> np.ndarray:
    # Egg-shaped (broader behind), a little squarer than an ellipse, with a flat base.
    x, y, z = sided
    behind = np.clip(y / 87, -1, 1)
    broad = 1 + 0.09 * behind - 0.05 * behind**2
    square = 1 - 0.05 * (2 * np.clip(x / 69, 0, 1) * np.abs(behind)) ** 2
    flat = z * np.where(z > 0, np.float32(1), np.float32(46 / 34))
    body = ellipsoid(np.stack([x / broad * square, y * square, flat]), (0, 0, 0), (69, 87, 46))
    front = np.minimum(y, 0)
    return np.minimum(body, z + 29 - np.float32(0.0016) * front * front)


def callosal_region(points: np.ndarray) -> np.ndarray:
    """Distance into the region of the midline plane where the hemispheres are joined (corpus callosum and below)."""
    return ellipsoid(np.stack([np.zeros_like(points[0]), points[1], points[2]]), (0, 2, 0), (1e3, 45, 26))


def deep_core(points: np.ndarray) -> np.ndarray:
    """The middle of the brain, with nuclei and callosal fibres, where no sulcus goes."""
    return ellipsoid(points, (0, 4, 4), (30, 36, 18))


def cisterns(points: np.ndarray, stem_mm: np.ndarray) -> np.ndarray:
    """The fluid spaces at the base: before and around the midbrain. ``stem_mm``: distance to the brain stem."""
    _, y, z = points
    peduncles = np.maximum(4 - y, 0) * np.clip((z + 20) / 6, 0, 1)
    around = stem_mm + np.float32(3.0) - 6 * np.maximum(z + 10, 0) - peduncles
    before = ellipsoid(points, (0, -16, -20), (11, 9, 9))
    return np.maximum(around, before)


def ventricles(points: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """The lateral ventricles with frontal, occipital and temporal horns; third and fourth ventricle together."""
    sided = mirrored(points)
    front, genu, body = (12.0, -37.0, 2.0, 2.4 * scale), (8.5, -24.0, 8.0, 4.8 * scale), (8.0, -2.0, 15.0, 4.8 * scale)
    bow, trigone = (13.0, 18.0, 14.0, 5.2 * scale), (23.0, 33.0, 6.0, 6.0 * scale)
    rods = [(front, genu), (genu, body), (body, bow), (bow, trigone)]
    rods += [(trigone, (24.0, 55.0, 2.0, 2.0 * scale)), (trigone, (34.0, 8.0, -17.0, 2.0 * scale))]
    lateral = np.maximum.reduce([capsule(sided, start, end) for start, end in rods])
    lateral = np.minimum(lateral, sided[0] - np.float32(0.9))  # the septum keeps the two apart
    third = ellipsoid(points, (0, 4, -2), (1.9 * scale, 14, 9))
    fourth = ellipsoid(points, (0, 27, -33), (7 * scale, 4.5 * scale, 9))
    return lateral, np.maximum(third, fourth)


def deep_nuclei(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Caudate, putamen and thalamus together; the pallidum."""
    sided = mirrored(points)
    x, y, z = sided
    turned = np.stack([x - np.float32(0.30) * (y + 2), y, z])
    caudate = ellipsoid(sided, (14.5, -20, 6), (6.0, 11, 9))
    tail = capsule(sided, (16, -12, 14, 3.6), (23, 20, 15, 1.8))
    putamen = ellipsoid(turned, (27, -2, 0), (5.0, 17, 10))
    pallidum = ellipsoid(turned, (20.5, 0, -1), (3.6, 9, 7))
    thalamus = ellipsoid(np.stack([x - np.float32(0.25) * (y - 14), y, z]), (10.5, 14, 4), (8.0, 14, 9))
    return np.maximum.reduce([caudate, tail, putamen, thalamus]), pallidum


FOLD_SPACING_MM = 6.5
"""Lattice of the folding noise; neighbouring sulci lie about one and a half of it apart."""
FAR_MM = np.float32(99.0)


@dataclass(frozen=True)
class Traits:
    """What differs between subjects besides the random fields. Lengths in mm."""

    age_years: float
    scale: tuple[float, float, float]
    ventricle_scale: float
    cortex_mm: float
    sulcus_mm: float
    """Half the width of a sulcus."""
    sulcus_depth_mm: float
    asymmetry: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        """Draw one subject: older brains have wider ventricles and sulci and a thinner cortex."""
        age = rng.uniform(20.0, 82.0)
        old = (age - 20.0) / 62.0
        scale = np.clip(rng.normal(0.985, 0.02), 0.94, 1.02) * (1 + np.clip(rng.normal(0.0, 0.015, 3), -0.03, 0.02))
        return cls(
            age_years=round(float(age), 2),
            scale=(float(scale[0]), float(scale[1]), float(min(scale[2], 1.02))),
            ventricle_scale=float(0.75 + 0.45 * old + rng.normal(0, 0.1)),
            cortex_mm=float(3.5 - 0.4 * old + rng.normal(0, 0.1)),
            sulcus_mm=float(0.5 + 0.5 * old + rng.normal(0, 0.06)),
            sulcus_depth_mm=float(rng.normal(14.5, 0.8)),
            asymmetry=float(rng.normal(0.0, 0.02)),
        )


@dataclass(frozen=True)
class Anatomy:
    """Tissue shares of a healthy brain, each (N,) float32; they sum to 1 at every voxel.

    ``mask``: inside the skull-stripped hull. ``depth_mm``: depth below the pia. ``ventricle_mm``: signed distance to the
    lateral ventricles, negative outside.
    """

    mask: np.ndarray
    grey: np.ndarray
    white: np.ndarray
    csf: np.ndarray
    nuclei: np.ndarray
    pallidum: np.ndarray
    depth_mm: np.ndarray
    ventricle_mm: np.ndarray


def bend(rng: np.random.Generator, grid: Grid, traits: Traits) -> np.ndarray:
    """Coordinates of the template brain seen at every voxel of the subject: (3, X, Y, Z) float32, in mm."""
    points = grid.mesh.copy()
    for axis in range(3):
        points[axis] += np.clip(smooth_noise(rng, 55.0, grid), -2.2, 2.2) * np.float32((2.4, 2.8, 1.2)[axis])
        points[axis] += smooth_noise(rng, 22.0, grid) * np.float32(0.8)
        points[axis] /= np.float32(traits.scale[axis])
    points[0] *= 1 + np.float32(traits.asymmetry) * np.sign(points[0])
    return points


def canvas_of(points: np.ndarray, grid: Grid) -> Canvas:
    """The voxels near the brain, with a margin for derivatives. ``points``: (3, X, Y, Z)."""
    x, y, z = points
    return Canvas(grid, (x / 79) ** 2 + (y / 93) ** 2 + (z / 80) ** 2 < 1)


def build(rng: np.random.Generator, canvas: Canvas, points: np.ndarray, traits: Traits) -> Anatomy:
    """Tissue shares of one subject at the voxels of ``canvas``."""
    voxel = canvas.grid.voxel_mm
    outer = lobes(points)
    mask = smooth_union(smooth_union(outer.cerebrum, outer.cerebellum, 9.0), outer.stem - 1, 9.0) > 0
    depth = depth_below_pia(rng, canvas, points, outer, traits)
    inside = soft_step(depth, voxel)
    grey = inside * soft_step(np.float32(traits.cortex_mm) - depth, voxel)
    white = np.maximum(inside - grey, 0)
    below = soft_step(outer.cerebellum, voxel) * (1 - inside)
    leaf_grey, leaf_fluid = _cerebellar_leaves(rng, canvas, points, outer.cerebellum)
    grey += below * leaf_grey
    white += below * np.maximum(1 - leaf_grey - leaf_fluid, 0)
    stem = soft_step(outer.stem, voxel) * (1 - soft_step(outer.cerebellum, voxel))
    grey = grey * (1 - stem) + 0.12 * stem
    white = white * (1 - stem) + 0.88 * stem
    return _with_depths(points, traits, mask, grey, white, depth, voxel)


def depth_below_pia(
    rng: np.random.Generator, canvas: Canvas, points: np.ndarray, outer: Lobes, traits: Traits
) -> np.ndarray:
    """Depth in mm below the pia of the cerebrum, negative in the fluid of sulci, fissures and cisterns: (N,)."""
    x, y, z = points
    half = np.float32(traits.sulcus_mm)
    midline = np.hypot(x + canvas.noise(rng, 30.0), np.maximum(callosal_region(points), 0)) - half * np.float32(1.2)
    depth = np.minimum(outer.cerebrum - half * np.float32(0.8), np.where(z > -30, midline, FAR_MM))
    depth = np.minimum(depth, -cisterns(points, outer.stem))
    reach = (traits.sulcus_depth_mm + 3.5 * canvas.noise(rng, 16.0)) * np.clip(1 + z / 55, 0.5, 1)
    reach = reach * np.clip(-deep_core(points) / 8, 0, 1)
    folds = _sheet(_sulci(rng, canvas, points), depth, reach) - half
    sylvian = np.abs(z + 8 - 0.6 * (y + 14) + 3 * canvas.noise(rng, 16.0)) / np.float32(1.17)
    near = np.clip((np.abs(x) - 24) / 6, 0, 1) * np.clip((30 - y) / 8, 0, 1)
    lateral = _sheet(sylvian, outer.cerebrum, 24.0 * near) - half * np.float32(1.3)
    return np.minimum(np.minimum(depth, folds), lateral)


def _sheet(distance_mm: np.ndarray, depth_mm: np.ndarray, reach_mm: np.ndarray) -> np.ndarray:
    # Distance to a sheet that ends reach_mm below the surface; distance_mm is to the endless one.
    return np.hypot(distance_mm, np.maximum(depth_mm - reach_mm, 0))


def _sulci(rng: np.random.Generator, canvas: Canvas, points: np.ndarray) -> np.ndarray:
    # Distance in mm to the nearest endless sulcal sheet, first order: |value| / |gradient|.
    fine = Grid(2.5, (BOX_MM[0] + 40, BOX_MM[1] + 40, BOX_MM[2] + 40))
    noise = spline_field(lattice_noise(rng, FOLD_SPACING_MM, band=True), FOLD_SPACING_MM, fine)
    target = _towards_surface(points)
    index = [t / np.float32(2.5) + np.float32((n - 1) / 2) for t, n in zip(target, fine.shape, strict=True)]
    value = ndimage.map_coordinates(noise, index, order=1, mode="nearest", output=np.float32)
    slope = np.sqrt(sum(g[canvas.inside] ** 2 for g in np.gradient(canvas.paint(value), canvas.grid.voxel_mm)))
    return np.abs(value) / np.maximum(slope, np.float32(0.2) * slope.mean())


def _towards_surface(points: np.ndarray) -> np.ndarray:
    # Each hemisphere's points, moved most of the way along their ray to an ellipsoid: sulci then run inwards.
    x, y, z = points
    centre = np.stack([np.copysign(np.float32(24), x), np.float32(0.6) * y, np.full_like(z, -2)])
    offset = points - centre
    radius = np.sqrt((offset[0] / 44) ** 2 + (offset[1] / 35) ** 2 + (offset[2] / 47) ** 2)
    return centre + offset * (np.float32(0.3) + np.float32(0.7) / np.maximum(radius, np.float32(0.25)))


def _cerebellar_leaves(
    rng: np.random.Generator, canvas: Canvas, points: np.ndarray, outer_mm: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    # Grey and fluid shares inside the cerebellum: thin leaves around a white core.
    phase = (0.25 * outer_mm + canvas.noise(rng, 14.0) + points[2] / 4 + points[1] / 14) * np.float32(2 * np.pi / 1.7)
    leaves = 0.5 + 0.5 * np.sin(phase)
    fluid = 0.35 * leaves**4 * soft_step(8 - outer_mm, 4.0)
    return soft_step(9 + 3 * leaves - outer_mm, 3.0) * (1 - fluid), fluid


def _with_depths(
    points: np.ndarray,
    traits: Traits,
    mask: np.ndarray,
    grey: np.ndarray,
    white: np.ndarray,
    depth: np.ndarray,
    voxel: float,
) -> Anatomy:
    nuclei_mm, pallidum_mm = deep_nuclei(points)
    lateral, other = ventricles(points, traits.ventricle_scale)
    wet = soft_step(np.maximum(lateral, other), voxel)
    nuclei = soft_step(nuclei_mm, voxel) * (1 - wet)
    pallidum = soft_step(pallidum_mm, voxel) * np.maximum(1 - wet - nuclei, 0)
    dry = np.maximum(1 - wet - nuclei - pallidum, 0)
    grey, white = grey * dry, white * dry
    csf = np.clip(1 - grey - white - nuclei - pallidum, 0, 1)
    return Anatomy(mask, grey, white, csf, nuclei, pallidum, depth, lateral)
