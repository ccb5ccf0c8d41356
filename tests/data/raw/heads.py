"""Heads for the tests of preparation: a real one where Debian's package is, phantoms with a skull, and what befalls them."""

import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from cddpm.data.phantom.skull import room, with_skull
from cddpm.data.phantom.subject import Dataset, Subject, draw
from cddpm.data.raw.head import Grid, Head
from cddpm.data.raw.registration import Scene
from cddpm.data.raw.resampling import Affine, Lattice, cubic, moved, share
from cddpm.data.volume import read_image

TEMPLATES = Path("/usr/share/mricron/templates")
MISSING = f"no real head is here: {TEMPLATES}/ch2.nii.gz is missing; install Debian's package mricron-data"


@dataclass(frozen=True)
class Whole:
    """A head with its skull, its brain, and lesions in it, on one grid."""

    image: Grid
    brain: Grid
    lesions: Grid

    @property
    def points(self) -> npt.NDArray[np.float64]:
        """(N, 3) in mm: some of the brain's voxels."""
        index = np.argwhere(self.brain.data > 0)[::31]
        return index @ self.brain.affine[:3, :3].T + self.brain.affine[:3, 3]


def real() -> Whole:
    """``ch2``, a T1 head of 1 mm, with balls for lesions; a skip where it is not."""
    if not (TEMPLATES / "ch2.nii.gz").is_file():
        pytest.skip(MISSING)
    head, brain = (read_image(TEMPLATES / f"{name}.nii.gz") for name in ("ch2", "ch2bet"))
    inside = ndimage.binary_fill_holes(brain.data > 0).astype(np.uint8)
    return Whole(Grid(head.data, head.affine), Grid(inside, head.affine), _balls(inside, head.affine))


def mni152() -> Scene:
    """The MNI152 T1 template of 1 mm, stripped, that the package ``nilearn`` carries; a skip where it is not installed."""
    spec = importlib.util.find_spec("nilearn")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("no real template is here: install nilearn from PyPI")
    name = "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
    image = read_image(Path(next(iter(spec.submodule_search_locations))) / "datasets" / "data" / name)
    return Scene(Grid(image.data, image.affine), Grid((image.data > 0).astype(np.uint8), image.affine))


def _balls(inside: npt.NDArray[np.uint8], affine: Affine) -> Grid:
    """Label 1: balls of 3 to 8 mm; label 2: of one or two voxels."""
    random, labels = np.random.default_rng(5), np.zeros(inside.shape, np.uint8)
    deep = np.argwhere(ndimage.binary_erosion(inside, iterations=10))
    size = np.linalg.norm(affine[:3, 0])
    for number in range(14):
        centre = deep[random.integers(len(deep))]
        away = np.indices(inside.shape) - centre[:, None, None, None]
        radius = random.uniform(3, 8) if number < 6 else random.uniform(0.5, 1.1) * size
        labels[np.square(away * size).sum(0) <= radius**2] = 1 if number < 6 else 2
    return Grid(labels, affine)


@functools.cache
def phantom(contrast: str = "t1", dataset: Dataset = "MSLUB", index: int = 0, voxel_mm: float = 2.0) -> Whole:
    """A phantom in fluid, bone and scalp: drawn shells of 2, 6 and 6 mm around its brain, and noise around all."""
    drawing = draw(Subject(3, dataset, index, voxel_mm), (contrast,))
    brain = room(drawing.mask, voxel_mm) > 0
    image = with_skull(drawing.scans[contrast], drawing.mask, contrast, voxel_mm, index)
    lesions = np.zeros(brain.shape, np.uint8) if drawing.segmentation is None else room(drawing.segmentation, voxel_mm)
    x, y, z = brain.shape
    affine = np.diag([-voxel_mm, -voxel_mm, voxel_mm, 1.0])
    affine[:3, 3] = -np.diag(affine)[:3] * (np.array([x, y, z]) - 1) / 2
    return Whole(*(Grid(data, affine) for data in (image, brain.astype(np.uint8), lesions)))


def motion(
    turn_degrees: float = 15.0,
    shift_mm: float = 20.0,
    scale: float = 1.1,
    shear: float = 0.0,
    about: tuple[float, ...] = (1, 2, 3),
) -> Affine:
    """A known affine motion of points."""
    axis = np.array(about) / np.linalg.norm(about)
    result = np.eye(4)
    sheared = np.eye(3)
    sheared[0, 1] = sheared[2, 0] = shear
    result[:3, :3] = Rotation.from_rotvec(np.radians(turn_degrees) * axis).as_matrix() @ sheared * scale
    result[:3, 3] = shift_mm * np.roll(axis, 1)
    return result


def scanned(
    whole: Whole, by: Affine, voxel_mm: float, slices: int = 1, bias: float = 0.0, seed: int = 0
) -> tuple[Whole, npt.NDArray[np.float32]]:
    """``whole`` moved ``by`` (mm to mm) and scanned anew, and its bias field.

    Voxels are of ``voxel_mm``, ``slices`` of them averaged along the third axis; the field is exp of smooth waves of +-``bias``.
    """
    points = np.array([by @ np.array([*p, 1.0]) for p in whole.points])[:, :3]
    low, high = points.min(0) - 35, points.max(0) + 35
    counts = [round(n / voxel_mm) for n in high - low]
    counts[2] -= counts[2] % slices
    affine = np.diag([voxel_mm, voxel_mm, voxel_mm, 1.0])
    affine[:3, 3] = low
    lattice = Lattice((counts[0], counts[1], counts[2]), affine)
    image = cubic(moved(whole.image, by), lattice).data
    labels = np.zeros(lattice.shape, np.uint8)
    for label in (1, 2):
        labels[share(moved(Grid(whole.lesions.data == label, whole.lesions.affine), by), lattice) >= 0.5] = label
    brain = share(moved(whole.brain, by), lattice)
    field = field_of(lattice.shape, bias, seed)
    thick = affine.copy()
    thick[:3, 2] *= slices
    thick[2, 3] += (slices - 1) / 2 * voxel_mm
    averaged, field = _thick(image * field, slices), _thick(field, slices)
    of_lesions = np.max([label * (_thick((labels == label) * 1.0, slices) >= 0.5) for label in (1, 2)], axis=0)
    return Whole(
        Grid(averaged.astype(np.float32), thick),
        Grid((_thick(brain, slices) >= 0.5).astype(np.uint8), thick),
        Grid(of_lesions.astype(np.uint8), thick),
    ), field.astype(np.float32)


def field_of(shape: tuple[int, ...], bias: float, seed: int = 0) -> npt.NDArray[np.float32]:
    """A smooth positive field (X, Y, Z): exp of sums of half waves along each axis, of at most ``bias``."""
    random, waves = np.random.default_rng(seed), np.zeros(shape)
    axes = np.meshgrid(*(np.linspace(0, np.pi, n) for n in shape), indexing="ij")
    for axis in axes:
        waves += random.uniform(0.6, 1) * np.cos(axis + random.uniform(0, 0.5))
    return np.exp(bias * waves / np.abs(waves).max()).astype(np.float32)


def _thick(data: npt.NDArray[np.floating], slices: int) -> npt.NDArray[np.floating]:
    return data.reshape(*data.shape[:2], -1, slices).mean(3)


def head_of(whole: Whole, masked: bool = False) -> Head:
    """What a step takes."""
    return Head({"t1": whole.image}, whole.brain if masked else None, whole.lesions)


def dice(one: npt.NDArray[np.generic], other: npt.NDArray[np.generic]) -> float:
    """Of two masks (X, Y, Z)."""
    here, there = np.asarray(one) > 0, np.asarray(other) > 0
    return 2 * float((here & there).sum()) / float(here.sum() + there.sum())


def error_mm(found: Affine, true: Affine, points: npt.NDArray[np.float64]) -> float:
    """Mean distance between where two motions bring ``points`` (N, 3)."""
    apart = (found - true) @ np.concatenate([points, np.ones((len(points), 1))], axis=1).T
    return float(np.linalg.norm(apart[:3], axis=0).mean())
