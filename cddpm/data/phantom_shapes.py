"""The template brain's parts as signed distances in mm, positive inside, at any points.

``points``: (3, ...) float32, mm, x to the left, y to the back, z up; every distance has the shape (...). The proportions are
drawn by hand after an axial atlas, flattened along z so that the whole brain fits into 100 mm.
"""

from dataclasses import dataclass

import numpy as np

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
