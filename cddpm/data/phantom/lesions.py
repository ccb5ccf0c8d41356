"""Lesions of four kinds, drawn into a phantom's anatomy: tumour, plaques, stroke and white matter hyperintensities.

Their intensities overlap with healthy tissue on purpose (an oedema is as bright as cortex, a plaque as a partly filled
sulcus): what gives them away is where they lie. Letters: N voxels of the canvas; lengths in mm.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from cddpm.data.phantom.anatomy import Anatomy, ellipsoid, lobes
from cddpm.data.phantom.canvas import Canvas, soft_step

Intensity = dict[str, np.ndarray]
"""Modality -> intensity (N,), in units where fluid on T2 is 1."""


@dataclass(frozen=True)
class Lesion:
    """``share`` (N,) in [0, 1] of each voxel is lesion of ``intensity``; the segmentation is ``share`` >= 0.5."""

    share: np.ndarray
    intensity: Intensity

    @property
    def segmentation(self) -> np.ndarray:
        """(N,) uint8 in {0, 1}."""
        return (self.share >= 0.5).astype(np.uint8)


@dataclass(frozen=True)
class Focus:
    """Where a tumour sits, in mm, before the anatomy is drawn: it pushes its surroundings aside."""

    centre: tuple[float, float, float]
    radius: float
    push: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        """Draw a place in one hemisphere, at least 8 mm below the hull."""
        while True:
            side = rng.choice([-1.0, 1.0])
            centre = (side * rng.uniform(18, 46), rng.uniform(-52, 55), rng.uniform(-6, 28))
            if lobes(np.array(centre, np.float32)).cerebrum > 8:
                return cls(centre, float(rng.uniform(9.0, 19.0)), float(rng.uniform(0.1, 0.3)))

    def displace(self, points: np.ndarray, mesh: np.ndarray) -> np.ndarray:
        """Bent coordinates with the mass effect: tissue near the focus is seen further away from it. Shapes (3, ...)."""
        offset = mesh - np.array(self.centre, np.float32).reshape(3, *[1] * (mesh.ndim - 1))
        square = (offset**2).sum(axis=0) / np.float32(2 * (1.6 * self.radius) ** 2)
        return points - offset * (np.float32(self.push) * np.exp(-square))


def tumour(rng: np.random.Generator, canvas: Canvas, anatomy: Anatomy, focus: Focus) -> Lesion:
    """Core with a necrotic centre, and an oedema that follows the white matter around it."""
    voxel = canvas.grid.voxel_mm
    offset = canvas.grid.mesh[:, canvas.inside] - np.array(focus.centre, np.float32)[:, None]
    distance = np.sqrt((offset**2).sum(axis=0))
    rough = 1 + 0.22 * canvas.noise(rng, 14.0) + 0.10 * canvas.noise(rng, 6.0)
    core = soft_step(focus.radius - distance * rough, voxel) * soft_step(anatomy.depth_mm + 3, voxel)
    reach = focus.radius * rng.uniform(1.5, 2.1)
    border = reach - distance * (1 + 0.25 * np.clip(canvas.noise(rng, 22.0), -1.5, 1.5))
    oedema = soft_step(border, 4.0) * np.clip(anatomy.white + 0.35 * anatomy.grey, 0, 1)
    necrosis = soft_step(focus.radius * rng.uniform(0.25, 0.6) - distance * (1 + 0.35 * canvas.noise(rng, 9.0)), 3.0)
    share = np.maximum(core, oedema)
    weights = (share - core, core * (1 - necrosis), core * necrosis)
    texture = canvas.noise(rng, 8.0)
    t2 = (rng.uniform(0.70, 0.84), rng.uniform(0.70, 0.84) + 0.08 * texture, rng.uniform(0.84, 0.94))
    t1 = (rng.uniform(0.58, 0.70), rng.uniform(0.44, 0.56) + 0.05 * texture, rng.uniform(0.24, 0.34))
    return Lesion(share, {"t1": _mixed(weights, t1), "t2": _mixed(weights, t2)})


def _mixed(weights: tuple[np.ndarray, ...], values: tuple[np.ndarray | float, ...]) -> np.ndarray:
    total = np.maximum(sum(weights), np.float32(1e-6))
    mixed = sum(weight * value for weight, value in zip(weights, values, strict=True)) / total
    return np.asarray(mixed, np.float32)


def plaques(rng: np.random.Generator, canvas: Canvas, anatomy: Anatomy) -> Lesion:
    """Several ovoid plaques of 3 to 10 mm: most of them beside the ventricles and lying across them, some below the cortex."""
    beside = np.flatnonzero((anatomy.white > 0.9) & (anatomy.ventricle_mm < -1.5) & (anatomy.ventricle_mm > -12))
    below = np.flatnonzero((anatomy.white > 0.8) & (anatomy.depth_mm > 3) & (anatomy.depth_mm < 7))
    centres = [*rng.choice(beside, rng.integers(9, 20)), *rng.choice(below, rng.integers(2, 7))]
    share = _ovoids(rng, canvas, centres, radius=(1.6, 4.3), stretch=(1.0, 1.2)) * (1 - anatomy.csf)
    texture = 0.05 * canvas.noise(rng, 6.0)
    return _uniform(share, t1=rng.uniform(0.46, 0.60) + texture, t2=rng.uniform(0.70, 0.86) + texture)


def hyperintensities(rng: np.random.Generator, canvas: Canvas, anatomy: Anatomy) -> Lesion:
    """Caps and rims of the ventricles that grow together, and punctate spots in the deep white matter."""
    burden = rng.uniform(0.4, 1.0)
    y = canvas.grid.mesh[1][canvas.inside]
    horns = np.clip((np.abs(y - 5) - 18) / 15, 0, 1)
    width = burden * (1.0 + 6.5 * horns) * (1 + 0.45 * canvas.noise(rng, 14.0))
    caps = soft_step(anatomy.ventricle_mm + width, canvas.grid.voxel_mm)
    deep = np.flatnonzero((anatomy.white > 0.9) & (anatomy.depth_mm > 4) & (anatomy.ventricle_mm < -4))
    spots = _ovoids(rng, canvas, rng.choice(deep, rng.integers(4, 16)), radius=(1.2, 2.6), stretch=(1.0, 1.4))
    share = np.maximum(caps, spots) * np.clip(anatomy.white * 1.3, 0, 1)
    texture = 0.04 * canvas.noise(rng, 6.0)
    return _uniform(share, t1=rng.uniform(0.54, 0.66) + texture, t2=rng.uniform(0.60, 0.76) + texture)


def stroke(rng: np.random.Generator, canvas: Canvas, anatomy: Anatomy) -> Lesion:
    """A chronic infarct: a wedge from the cortex inwards, or (one in four) a lacune near the deep nuclei."""
    texture = 0.06 * canvas.noise(rng, 7.0)
    rough = 2.5 * canvas.noise(rng, 12.0) + 1.0 * canvas.noise(rng, 5.0)
    small = rng.random() < 0.25
    inside = _lacune(rng, canvas) + 0.6 * rough if small else _wedge(rng, canvas) + rough
    share = soft_step(inside, canvas.grid.voxel_mm) * (1 - 0.8 * anatomy.csf)
    cavity = soft_step(inside - rng.uniform(2.0, 6.0), 4.0)
    rim, hole = rng.uniform(0.42, 0.55), rng.uniform(0.20, 0.34)
    t1 = (1 - cavity) * (rim + texture) + cavity * hole
    t2 = (1 - cavity) * (0.66 + texture) + cavity * 0.92
    return _uniform(share, t1=t1, t2=t2)


def _lacune(rng: np.random.Generator, canvas: Canvas) -> np.ndarray:
    centre = (rng.choice([-1.0, 1.0]) * rng.uniform(18, 32), rng.uniform(-18, 20), rng.uniform(-2, 14))
    return ellipsoid(canvas.grid.mesh[:, canvas.inside], centre, tuple(rng.uniform(3.5, 8.0, 3)))


def _wedge(rng: np.random.Generator, canvas: Canvas) -> np.ndarray:
    # A cone whose tip lies near the ventricle and whose base is the cortex, cut by a slab of slices.
    tip = np.array(
        [rng.choice([-1.0, 1.0]) * rng.uniform(14, 22), rng.uniform(-25, 30), rng.uniform(2, 14)], np.float32
    )
    angle, tilt = rng.uniform(-1.2, 1.2), rng.uniform(-0.35, 0.35)
    outwards = np.sign(tip[0]) * np.cos(angle)
    axis = np.array([outwards * np.cos(tilt), np.sin(angle) * np.cos(tilt), np.sin(tilt)], np.float32)
    offset = canvas.grid.mesh[:, canvas.inside] - tip[:, None]
    along = offset[0] * axis[0] + offset[1] * axis[1] + offset[2] * axis[2]
    across = np.sqrt(np.maximum((offset**2).sum(axis=0) - along**2, 0))
    opening, start = np.float32(rng.uniform(0.3, 0.6)), np.float32(rng.uniform(4, 16))
    return np.minimum((along * opening - across) * np.float32(0.85), along - start)


def _ovoids(
    rng: np.random.Generator,
    canvas: Canvas,
    centres: list[int] | np.ndarray,
    radius: tuple[float, float],
    stretch: tuple[float, float],
) -> np.ndarray:
    # Ovoids around canvas voxels, stretched from side to side (plaques follow the veins across the ventricles).
    points = canvas.grid.mesh[:, canvas.inside]
    share = np.zeros(points.shape[1], np.float32)
    for centre in centres:
        r = radius[0] + (radius[1] - radius[0]) * rng.random() ** 1.5  # more small ones than large
        radii = (r * rng.uniform(*stretch), r * rng.uniform(0.9, 1.1), r * rng.uniform(0.9, 1.2))
        offset = points - points[:, centre, None]
        near = np.flatnonzero((np.abs(offset) < 8).all(axis=0))
        inside = soft_step(ellipsoid(offset[:, near], (0, 0, 0), radii), canvas.grid.voxel_mm)
        share[near] = np.maximum(share[near], inside)
    return share


def _uniform(share: np.ndarray, t1: np.ndarray | float, t2: np.ndarray | float) -> Lesion:
    full = np.ones_like(share)
    return Lesion(share.astype(np.float32), {"t1": full * np.float32(t1), "t2": full * np.float32(t2)})
