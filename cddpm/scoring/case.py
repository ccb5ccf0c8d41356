"""The volumes that are scored, and where their arrays come from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cddpm.errors import DataError
from cddpm.scoring.metrics import Confusion, counted
from cddpm.scoring.postprocess import bounding_box
from cddpm.scoring.residual import erosion_iterations

Box = tuple[slice, slice, slice]


class VolumeStore(Protocol):
    """The part of the slice store that scoring reads; (S, H, W) arrays by volume index."""

    @property
    def volumes(self) -> Sequence[Any]:
        """What is known of each volume: ``id``, ``dataset``, ..."""

    def image(self, v: int) -> NDArray[np.float16]:
        """Intensities in [0, 1]."""

    def mask(self, v: int) -> NDArray[np.uint8]:
        """Brain mask, 0 or 1."""

    def segmentation(self, v: int) -> NDArray[np.uint8]:
        """Lesions, 0 or 1."""

    def ignored(self, v: int) -> NDArray[np.int64]:
        """Flat indices (N,) of voxels that count neither way."""


class Reconstructions(Protocol):
    """The part of a reconstruction that scoring reads; (S, H, W) arrays by volume id, noise level and seed."""

    @property
    def levels(self) -> tuple[int, ...]:
        """Noise levels, 1 to T."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """Noise seeds."""

    @property
    def guided(self) -> bool:
        """Whether there are unconditional predictions."""

    def c(self, volume: str, level: int, seed: int) -> NDArray[np.floating[Any]]:
        """The conditional prediction of x0."""

    def d(self, volume: str, level: int, seed: int) -> NDArray[np.floating[Any]]:
        """The conditional minus the unconditional prediction. Raises ``ArtifactError`` without one."""


@dataclass(frozen=True)
class Case:
    """One volume with what does not depend on the scoring settings."""

    index: int
    id: str
    dataset: str
    box: Box
    """Bounding box of the brain mask: nothing outside of it can score."""
    brain: NDArray[np.int32]
    """Flat indices of brain voxels that count; half as wide as the usual, since a process holds those of every volume."""
    lesion: NDArray[np.int64]
    """Flat indices of lesion voxels."""
    ignored: NDArray[np.int64]
    """Flat indices of voxels that count neither way: in no threshold, curve, mean or number of voxels."""
    columns: int
    """Of the model's slice, which decides how far masks are eroded, also where more than its window is looked at."""
    voxel_ml: float | None = None
    """Volume of a voxel; none where it is not known."""
    brain_unseen_ml: float | None = None
    """Volume of the brain beyond the window that was looked at; none where it was not counted."""
    lesion_unseen_ml: float | None = None
    """Of the lesions."""

    def erosion(self, divisor: int | None) -> int:
        """How often the brain mask is eroded."""
        return erosion_iterations((1, 1, self.columns), divisor)

    def counted(self, found: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """``found`` (S, H, W) without the ignored voxels; the same array if there are none."""
        if not self.ignored.size:
            return found
        left = found.copy()
        left.ravel()[self.ignored] = False
        return left

    def confusions(self, store: VolumeStore, prediction: NDArray[np.bool_]) -> tuple[Confusion, Confusion]:
        """Of a prediction of counted voxels, over all voxels and over brain voxels that count.

        What is predicted are few voxels, and only they are looked at.
        """
        mask, predicted = store.mask(self.index).ravel(), np.flatnonzero(prediction)
        hit, inside = store.segmentation(self.index).ravel()[predicted] > 0, mask[predicted] > 0
        both, both_inside, inside_brain, lesion = (
            int(np.count_nonzero(a)) for a in (hit, hit & inside, inside, mask[self.lesion])
        )
        return (
            counted(both, predicted.size, self.lesion.size, prediction.size),
            counted(both_inside, inside_brain, lesion, self.brain.size),
        )


def case_of(store: VolumeStore, v: int, dataset: str) -> Case:
    """Volume ``v`` of a store. Raises ``DataError`` for an empty brain mask."""
    record = store.volumes[v]
    brain = store.mask(v) > 0
    box = bounding_box(brain)
    if box is None:
        raise DataError(f"volume '{record.id}' of {dataset}: its brain mask is empty; there is nothing to score")
    lesion, ignored = np.flatnonzero(store.segmentation(v)), store.ignored(v)
    counted = np.setdiff1d(np.flatnonzero(brain), ignored, assume_unique=True).astype(np.int32)
    if not counted.size:
        raise DataError(f"volume '{record.id}' of {dataset}: all of its brain is ignored (data.ignored_labels)")
    unseen = (getattr(record, name, None) for name in ("brain_unseen_ml", "lesion_unseen_ml"))
    return Case(
        v, record.id, dataset, box, counted, lesion, ignored, _columns(record, brain), _voxel_ml(record), *unseen
    )


def _columns(record: Any, brain: NDArray[np.bool_]) -> int:
    geometry = getattr(record, "geometry", None)
    if geometry is None or geometry.beyond is None:
        return int(brain.shape[2])
    return int(geometry.window[1].stop - geometry.window[1].start)


def _voxel_ml(record: Any) -> float | None:
    """Volume of a working voxel; none where a record (that of a single scan) knows no geometry."""
    geometry = getattr(record, "geometry", None)
    return None if geometry is None else math.prod(geometry.working_voxel_size_mm) / 1000
