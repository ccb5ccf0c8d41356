"""One phantom subject: who it is, its scans (contrast, receive field, blur, Rician noise) and its files.

Its content depends on (seed, data set, index, size) and nothing else.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from scipy import ndimage

from cddpm.data.phantom.anatomy import Anatomy, Traits, bend, build, canvas_of
from cddpm.data.phantom.canvas import Canvas, Grid
from cddpm.data.phantom.lesions import Focus, Lesion, hyperintensities, plaques, stroke, tumour

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
