"""One phantom subject: who it is, its lesion, its scans (contrast, receive field, blur, Rician noise) and its files.

Its content depends on (seed, data set, index, size) and nothing else. Lesions are of four kinds: tumour, plaques, stroke and
white matter hyperintensities. Their intensities overlap with healthy tissue on purpose (an oedema is as bright as cortex, a
plaque as a partly filled sulcus): what gives them away is where they lie. Letters: N voxels of the canvas; lengths in mm.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Self, get_args

import numpy as np
from scipy import ndimage

from cddpm.data.phantom.anatomy import (
    Anatomy,
    Canvas,
    Grid,
    Traits,
    bend,
    build,
    canvas_of,
    ellipsoid,
    lobes,
    soft_step,
)

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


Contrast = Literal["t1", "t2"]
CONTRASTS: tuple[str, ...] = get_args(Contrast)
SIGNAL: dict[str, dict[str, float]] = {
    "t1": {"csf": 0.16, "grey": 0.52, "white": 0.80, "nuclei": 0.60, "pallidum": 0.73},
    "t2": {"csf": 1.00, "grey": 0.58, "white": 0.40, "nuclei": 0.52, "pallidum": 0.36},
}
"""Mean signal of each tissue, relative to fluid on T2."""
TOP = 30000
"""Largest stored value: scans are int16."""


def scan(
    rng: np.random.Generator, canvas: Canvas, anatomy: Anatomy, lesion: Lesion | None, contrast: str
) -> np.ndarray:
    """One skull-stripped scan on the canvas' grid: (X, Y, Z) int16, 0 outside the brain mask.

    Noise is Rician: the magnitude of a complex signal with Gaussian noise in both parts (Gudbjartsson and Patz, 1995, eq. 1).
    """
    signal = _signal(rng, canvas, anatomy, contrast)
    if lesion is not None:
        signal += lesion.share * (lesion.intensity[contrast] - signal)
    signal *= np.exp(np.float32(rng.uniform(0.04, 0.10)) * canvas.noise(rng, 80.0))
    signal = ndimage.gaussian_filter(canvas.paint(signal), 0.45)[canvas.inside]
    noise = rng.standard_normal((2, signal.size), dtype=np.float32) * np.float32(rng.uniform(0.018, 0.032))
    magnitude = np.hypot(signal + noise[0], noise[1])
    stored = np.rint(magnitude * np.float32(rng.uniform(450, 1200)))
    return canvas.paint((np.clip(stored, 1, TOP) * anatomy.mask).astype(np.int16))


def _signal(rng: np.random.Generator, canvas: Canvas, anatomy: Anatomy, contrast: str) -> np.ndarray:
    shares = {name: getattr(anatomy, name) for name in SIGNAL[contrast]}
    values = {name: value * (1 + np.clip(rng.normal(0, 0.03), -0.07, 0.07)) for name, value in SIGNAL[contrast].items()}
    signal = np.zeros(anatomy.mask.shape, np.float32)
    for name, share in shares.items():
        signal += share * np.float32(values[name])
    return signal * (1 + np.float32(0.025) * canvas.noise(rng, 12.0))


Dataset = Literal["IXI", "Brats21", "MSLUB", "ATLAS_v2", "WMH"]
DATASETS: tuple[Dataset, ...] = get_args(Dataset)
T1_ONLY: tuple[Dataset, ...] = ("ATLAS_v2", "WMH")
SMALL_SHAPE: dict[Dataset, tuple[int, int, int]] = {
    "IXI": (98, 114, 60),
    "Brats21": (96, 112, 58),
    "MSLUB": (100, 116, 62),
    "ATLAS_v2": (96, 110, 60),
    "WMH": (98, 112, 56),
}
"""Voxels of 2 mm; twice as many of 1 mm in the full size."""


@dataclass(frozen=True)
class Subject:
    """Number ``index`` of ``dataset`` under ``seed``; ``voxel_mm`` is 1 (full) or 2 (small)."""

    seed: int
    dataset: Dataset
    index: int
    voxel_mm: float

    @property
    def name(self) -> str:
        """Subject name in the form that the real data set uses."""
        match self.dataset:
            case "IXI":
                return f"IXI{self.index + 1:03d}-Guys-{700 + self.index:04d}"
            case "Brats21":
                return f"BraTS2021_{self.index:05d}"
            case "MSLUB":
                return f"patient{self.index + 1:02d}"
            case "ATLAS_v2":
                return f"sub-r001s{self.index + 1:03d}"
            case "WMH":
                return f"WMH{self.index + 1:03d}"
        raise ValueError(f"{self.dataset}: no phantom data set; there are {', '.join(DATASETS)}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels of the scan along each axis."""
        x, y, z = (round(n * 2 / self.voxel_mm) for n in SMALL_SHAPE[self.dataset])
        return x, y, z

    @property
    def affine(self) -> np.ndarray:
        """Voxel to world (RAS+, mm): axes run to the left, back and up; the world's origin is the middle of the scan."""
        steps = np.array([-self.voxel_mm, -self.voxel_mm, self.voxel_mm])
        affine = np.diag([*steps, 1.0])
        affine[:3, 3] = -steps * (np.array(self.shape) - 1) / 2
        return affine

    @cached_property
    def traits(self) -> Traits:
        """Age and proportions."""
        return Traits.draw(self.random("traits"))

    def random(self, purpose: str) -> np.random.Generator:
        """The random stream of one purpose; no stream moves another."""
        words = [self.seed, DATASETS.index(self.dataset), self.index, *purpose.encode()]
        return np.random.default_rng(np.random.SeedSequence(words))


@dataclass(frozen=True)
class Drawing:
    """A subject's scans (X, Y, Z) int16 by contrast, its brain mask and, if it is ill, segmentation: uint8 in {0, 1}."""

    scans: dict[str, np.ndarray]
    mask: np.ndarray
    segmentation: np.ndarray | None


def draw(subject: Subject, contrasts: tuple[str, ...] = CONTRASTS) -> Drawing:
    """Draw a subject's scans, mask and segmentation in memory, in the scan's own shape."""
    canvas, anatomy, lesion = _content(subject)
    scans = {c: _framed(subject, scan(subject.random(c), canvas, anatomy, lesion, c)) for c in contrasts}
    mask = _framed(subject, canvas.paint(anatomy.mask.astype(np.uint8)))
    if lesion is None:
        return Drawing(scans, mask, None)
    return Drawing(scans, mask, _framed(subject, canvas.paint(lesion.segmentation)) * mask)


def write(subject: Subject, root: Path, contrasts: tuple[str, ...]) -> None:
    """Write a subject's files into the DATA_DIR ``root``: scans int16, mask and segmentation uint8."""
    from cddpm.data.volume import write_volume  # nibabel: who draws in memory needs it not

    drawing = draw(subject, contrasts)
    arrays = {**drawing.scans, "mask": drawing.mask}
    if drawing.segmentation is not None:
        arrays["seg"] = drawing.segmentation
    for kind, path in files_of(subject, root, contrasts).items():
        write_volume(path, arrays[kind], subject.affine)


def files_of(subject: Subject, root: Path, contrasts: tuple[str, ...]) -> dict[str, Path]:
    """The subject's files in the DATA_DIR ``root`` by kind: the contrasts, ``mask`` and, of the ill, ``seg``."""
    healthy = subject.dataset == "IXI"
    folder = root / "Train" / "ixi" if healthy else root / "Test" / subject.dataset
    kinds = (*contrasts, "mask") if healthy else (*contrasts, "mask", "seg")
    return {kind: folder / kind / f"{subject.name}_{kind}.nii.gz" for kind in kinds}


def _content(subject: Subject) -> tuple[Canvas, Anatomy, Lesion | None]:
    grid, random = Grid(subject.voxel_mm), subject.random("anatomy")
    points = bend(random, grid, subject.traits)
    canvas = canvas_of(points, grid)
    points = points[:, canvas.inside]
    draw_lesion = subject.random("lesion")
    focus = Focus.draw(draw_lesion) if subject.dataset == "Brats21" else None
    if focus:
        points = focus.displace(points, grid.mesh[:, canvas.inside])
    anatomy = build(random, canvas, points, subject.traits)
    return canvas, anatomy, _lesion(subject.dataset, draw_lesion, canvas, anatomy, focus)


def _lesion(
    dataset: Dataset, random: np.random.Generator, canvas: Canvas, anatomy: Anatomy, focus: Focus | None
) -> Lesion | None:
    if focus is not None:
        return tumour(random, canvas, anatomy, focus)
    match dataset:
        case "MSLUB":
            return plaques(random, canvas, anatomy)
        case "ATLAS_v2":
            return stroke(random, canvas, anatomy)
        case "WMH":
            return hyperintensities(random, canvas, anatomy)
    return None


def _framed(subject: Subject, box: np.ndarray) -> np.ndarray:
    # The drawn box in the middle of the scan, which differs from it by an even number of voxels along each axis.
    if not any(s - b for s, b in zip(subject.shape, box.shape, strict=True)):
        return box
    framed = np.zeros(subject.shape, box.dtype)
    start = [(s - b) // 2 for s, b in zip(subject.shape, box.shape, strict=True)]
    framed[tuple(slice(a, a + n) for a, n in zip(start, box.shape, strict=True))] = box
    return framed
