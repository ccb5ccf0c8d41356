"""Detection lesion by lesion: which lesions were found, and which predicted components are right.

Lesions and predictions are 26-connected components. The rule: a lesion is *found* if more than a given fraction of its
voxels is predicted, and a predicted component is *right* if more than that fraction of its voxels is lesion. With 0 (the
default) one common voxel is enough. Recall = found lesions / lesions, precision = right components / components, F1 =
their harmonic mean. One component may find several lesions, and several components may be right about one lesion.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cddpm.scoring.postprocess import bounding_box

_TOUCHING = np.ones((3, 3, 3), bool)


@dataclass(frozen=True)
class Components:
    """The 26-connected components of a mask."""

    labels: NDArray[np.int32]
    """(S, H, W): 0 is background, component i has label i + 1."""
    voxels: NDArray[np.int64]
    """(N,): size of each component."""


@dataclass(frozen=True)
class Detection:
    """Counts by which detection is judged; those of several volumes are added to pool them."""

    lesions: int
    found: int
    components: int
    right: int

    @property
    def recall(self) -> float | None:
        """Found lesions / lesions; none without a lesion."""
        return self.found / self.lesions if self.lesions else None

    @property
    def precision(self) -> float | None:
        """Right components / predicted components; none without a prediction."""
        return self.right / self.components if self.components else None

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall; 0 if lesions were met by no prediction, none without a lesion."""
        if self.recall is None:
            return None
        if not self.found or self.precision is None or not self.right:
            return 0.0
        return 2 * self.precision * self.recall / (self.precision + self.recall)


def components(mask: NDArray[np.bool_]) -> Components:
    """Label the components of a mask (S, H, W)."""
    labels = np.zeros(mask.shape, np.int32)
    box = bounding_box(mask)
    if box is not None:
        ndimage.label(mask[box], _TOUCHING, output=labels[box])
    return Components(labels, np.bincount(labels.ravel(), minlength=1)[1:])


def overlapping(parts: Components, other: NDArray[np.bool_], overlap: float) -> NDArray[np.bool_]:
    """Which components have more than the fraction ``overlap`` of their voxels in the mask ``other`` (S, H, W); (N,).

    Raises ``ValueError`` if the shapes differ.
    """
    if parts.labels.shape != other.shape:
        raise ValueError(f"components {parts.labels.shape} and mask {other.shape} differ in shape")
    common = np.bincount(parts.labels[other], minlength=parts.voxels.size + 1)[1:]
    return common / parts.voxels > overlap


def detect(prediction: Components, truth: Components, overlap: float) -> Detection:
    """Count found lesions and right components of one volume under the rule at the top."""
    found = overlapping(truth, prediction.labels > 0, overlap)
    right = overlapping(prediction, truth.labels > 0, overlap)
    return Detection(found.size, int(found.sum()), right.size, int(right.sum()))


def pooled(detections: Iterable[Detection]) -> Detection:
    """All lesions and components of several volumes as those of one."""
    counts = [(d.lesions, d.found, d.components, d.right) for d in detections]
    lesions, found, predicted, right = (sum(column) for column in zip(*counts, strict=True)) if counts else (0,) * 4
    return Detection(lesions, found, predicted, right)


@dataclass(frozen=True)
class Stratum:
    """Lesions of at least ``from_ml`` and less than ``below_ml``."""

    from_ml: float
    below_ml: float | None
    """None: no upper limit."""

    @property
    def name(self) -> str:
        """For columns of a table: ``below_0.1ml``, ``0.1_to_1ml``, ``from_10ml``."""
        if self.below_ml is None:
            return f"from_{self.from_ml:g}ml"
        return f"{self.from_ml:g}_to_{self.below_ml:g}ml" if self.from_ml else f"below_{self.below_ml:g}ml"

    def holds(self, volumes_ml: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Which lesions of these volumes (N,) belong here."""
        return (volumes_ml >= self.from_ml) & (volumes_ml < (np.inf if self.below_ml is None else self.below_ml))


def strata(limits_ml: Sequence[float]) -> tuple[Stratum, ...]:
    """The strata between limits (in any order), which hold every lesion exactly once; a limit belongs to the larger one."""
    limits = sorted(set(limits_ml))
    return tuple(Stratum(low, high) for low, high in zip([0.0, *limits], [*limits, None], strict=True))
