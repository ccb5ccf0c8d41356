"""One head brought to another: mutual information over levels of resolution, from several starts.

Mattes et al. 2003 (IEEE TMI 22(1)), as in ITK. Every voxel counts and nothing is drawn at random, so with one thread equal
scans give equal bytes. ITK's physical points are mm in RAS+ here: its images are sampled along the axes of space first.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813
from scipy import ndimage

from cddpm.data.raw.head import Grid
from cddpm.data.raw.resampling import (
    Affine,
    around,
    as_array,
    as_itk,
    inverse,
    lattice_of,
    linear,
    mask_at,
    moved,
    share,
    voxel_sizes,
)

Kind = Literal["affine", "rigid"]
Linear = sitk.Euler3DTransform | sitk.AffineTransform
TURNS_DEGREES = (-25.0, 0.0, 25.0)
"""Starts are turned by each of these about each axis."""
STARTS = 3
"""So many of them, the most similar ones, are followed at the coarsest level."""
RIM_MM = 8.0
"""What lies around a brain by this counts too: its outline tells its size."""
BINS = 32
BRIGHTEST = 99.5
"""Percentile above which all is alike: fat takes no bins from the brain."""


@dataclass(frozen=True)
class Level:
    """One resolution: edge of its cubic voxels, and iterations at most."""

    voxel_mm: float
    iterations: int


COARSE, MIDDLE, FINE = Level(8.0, 60), Level(4.0, 100), Level(2.0, 40)


@dataclass(frozen=True)
class Scene:
    """What is registered: an image, and its brain where one is known."""

    image: Grid
    brain: Grid | None = None


@dataclass(frozen=True)
class Match:
    """``motion`` (4, 4) brings points (mm) of the moving scene to the fixed one; ``similarity``: their mutual information."""

    motion: Affine
    similarity: float


@dataclass(frozen=True)
class _Pair:
    fixed: sitk.Image
    moving: sitk.Image
    counted: sitk.Image | None


def match(fixed: Scene, moving: Scene, kind: Kind, levels: Sequence[Level] = (COARSE, MIDDLE, FINE)) -> Match:
    """The rigid or affine motion that brings ``moving`` to ``fixed``; coarse to fine, affine from the second level on.

    Where both brains are known they alone are compared, with the background around them; where one is, the heads around it.
    Starts are as the headers say, and with the centres on each other and turned by ``TURNS_DEGREES``.
    """
    pair = _pair(fixed, moving, levels[0].voxel_mm)
    starts = sorted(_starts(fixed, moving), key=lambda start: _dissimilarity(pair, start))[:STARTS]
    found = min((_improved(pair, start, levels[0]) for start in starts), key=lambda end: end[1])
    transform: Linear = found[0]
    for number, level in enumerate(levels[1:]):
        pair = _pair(fixed, moving, level.voxel_mm)
        if number == 0:
            transform, _ = _improved(pair, transform, level)
            if kind == "affine":
                transform = _as_affine(transform)
        transform, value = _improved(pair, transform, level)
        found = (transform, value)
    return Match(inverse(_matrix(found[0])), -found[1])


def _pair(fixed: Scene, moving: Scene, voxel_mm: float) -> _Pair:
    both = fixed.brain is not None and moving.brain is not None
    counted = None
    if fixed.brain is not None:
        near = ndimage.distance_transform_edt(_shares(fixed, voxel_mm) < 0.5, sampling=voxel_mm) <= RIM_MM
        counted = _placed(Grid(near.astype(np.uint8), around(fixed.image, "RAS", voxel_mm).affine))
    return _Pair(_view(fixed, voxel_mm, both), _view(moving, voxel_mm, both), counted)


def _shares(scene: Scene, voxel_mm: float) -> npt.NDArray[np.float32]:
    assert scene.brain is not None
    return share(scene.brain, around(scene.image, "RAS", voxel_mm))


def _view(scene: Scene, voxel_mm: float, stripped: bool) -> sitk.Image:
    """The image (of the brain alone, if ``stripped``) with cubic voxels along the axes of space."""
    seen = linear(scene.image, around(scene.image, "RAS", voxel_mm))
    data = seen.data
    if stripped:
        weight = _shares(scene, voxel_mm)
        data = (data - data.min()) * weight
        top = np.percentile(data[weight > 0.5], BRIGHTEST) if (weight > 0.5).any() else data.max()
    else:
        top = np.percentile(data, BRIGHTEST)
    return _placed(Grid(np.minimum(data, np.float32(top)), seen.affine))


def _placed(grid: Grid) -> sitk.Image:
    """An ITK image whose points are mm, of a grid along the axes of space."""
    image = as_itk(grid.data, voxel_sizes(grid.affine))
    image.SetOrigin(grid.affine[:3, 3].tolist())
    return image


def _starts(fixed: Scene, moving: Scene) -> list[sitk.Euler3DTransform]:
    here, there = centre(fixed), centre(moving)
    as_they_lie = _euler(here, np.zeros(3), (0.0, 0.0, 0.0))
    turns = itertools.product(TURNS_DEGREES, repeat=3)
    return [as_they_lie, *(_euler(here, there - here, turn) for turn in turns)]


def _euler(
    about: npt.NDArray[np.float64], shift: npt.NDArray[np.float64], turn: Sequence[float]
) -> sitk.Euler3DTransform:
    transform = sitk.Euler3DTransform()
    transform.SetCenter(about.tolist())
    transform.SetRotation(*(math.radians(angle) for angle in turn))
    transform.SetTranslation(shift.tolist())
    return transform


def centre(scene: Scene) -> npt.NDArray[np.float64]:
    """(3,) centre in mm of the brain; without one, of what is brighter than Otsu's threshold."""
    if scene.brain is not None:
        inside, affine = scene.brain.data > 0, scene.brain.affine
    else:
        seen = linear(scene.image, around(scene.image, "RAS", COARSE.voxel_mm))
        inside, affine = as_array(sitk.OtsuThreshold(as_itk(seen.data), 0, 1)) > 0, seen.affine
    return np.asarray((affine @ np.array([*ndimage.center_of_mass(inside), 1.0]))[:3])


def _method(pair: _Pair) -> sitk.ImageRegistrationMethod:
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(BINS)
    method.SetMetricSamplingStrategy(method.NONE)
    method.SetInterpolator(sitk.sitkLinear)
    if pair.counted is not None:
        method.SetMetricFixedMask(pair.counted)
    return method


def _dissimilarity(pair: _Pair, start: sitk.Transform) -> float:
    method = _method(pair)
    method.SetInitialTransform(start, inPlace=False)
    try:
        return float(method.MetricEvaluate(pair.fixed, pair.moving))
    except RuntimeError:  # nothing of the one lies on the other
        return math.inf


def _improved(pair: _Pair, start: Linear, level: Level) -> tuple[Linear, float]:
    """(transform from fixed to moving points, metric): ``start`` after gradient descent; ``start`` itself if nothing overlaps."""
    method, transform = _method(pair), type(start)(start)
    method.SetInitialTransform(transform, inPlace=True)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=1.0,
        minStep=0.002,
        numberOfIterations=level.iterations,
        relaxationFactor=0.6,
        gradientMagnitudeTolerance=1e-8,
        estimateLearningRate=method.Once,
        maximumStepSizeInPhysicalUnits=level.voxel_mm / 2,
    )
    method.SetOptimizerScalesFromPhysicalShift()
    try:
        method.Execute(pair.fixed, pair.moving)
    except RuntimeError:
        return start, math.inf
    return transform, float(method.GetMetricValue())


def _as_affine(rigid: Linear) -> sitk.AffineTransform:
    result = sitk.AffineTransform(3)
    result.SetCenter(rigid.GetCenter())
    result.SetMatrix(rigid.GetMatrix())
    result.SetTranslation(rigid.GetTranslation())
    return result


def _matrix(transform: sitk.Transform) -> Affine:
    """(4, 4) of a linear transform of points."""
    ends = np.array([transform.TransformPoint(point) for point in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))], float)
    result = np.eye(4)
    result[:3, 3] = ends[0]
    result[:3, :3] = (ends[1:] - ends[0]).T
    return result


def overlap(fixed: Grid, moving: Grid, motion: Affine) -> float:
    """Dice of two masks once ``motion`` has brought ``moving`` to ``fixed``, over the field of ``fixed``."""
    there = mask_at(moved(moving, motion), lattice_of(fixed)).data > 0
    here = fixed.data > 0
    total = np.count_nonzero(here) + np.count_nonzero(there)
    return 2 * float(np.count_nonzero(here & there)) / float(total) if total else 0.0


def displacement_mm(scene: Grid, motion: Affine) -> float:
    """How far ``motion`` moves the voxels of a mask, in the mean."""
    points = np.argwhere(scene.data > 0)[::7]
    if not len(points):
        return 0.0
    here = points @ scene.affine[:3, :3].T + scene.affine[:3, 3]
    return float(np.linalg.norm(here @ motion[:3, :3].T + motion[:3, 3] - here, axis=1).mean())
