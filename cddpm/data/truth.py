"""What becomes of a segmented lesion on its way to the working grid, told before anything is trained on it."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cddpm.data.geometry import Geometry, field_of_view
from cddpm.labels import Labels

if TYPE_CHECKING:
    from cddpm.data.volume import Volume

CUT_FRACTION = 0.01
"""A smaller part of a brain or of a lesion outside of the field of view is not worth a word."""
MOST_CHANGE = 2.0
"""Nearest-voxel sampling changes the volume of small lesions; by a larger factor it is told."""


@dataclass(frozen=True)
class Truth:
    """The lesion of one scan in its file and on the working grid."""

    dataset: str
    subject: str
    labels: dict[int, str]
    """Labels of the file: ``lesion`` or ``ignored``."""
    voxels: int = 0
    ml: float = 0.0
    cut_fraction: float = 0.0
    """Part of the lesion that lies outside of the field of view."""
    working_voxels: int = 0
    working_ml: float = 0.0

    @property
    def loss(self) -> str | None:
        """One sentence if the lesion vanishes, is cut, or changes its volume."""
        before, after = f"{self.voxels} voxels ({self.ml:.3g} ml)", f"{self.working_voxels} ({self.working_ml:.3g} ml)"
        way = f"{before} in the file, {after} on the working grid"
        if not self.voxels:
            return None
        if not self.working_voxels:
            return f"the lesion vanishes: {way}"
        if self.cut_fraction > CUT_FRACTION:
            return f"{self.cut_fraction:.0%} of the lesion lies outside of the field of view: {way}"
        if not 1 / MOST_CHANGE <= self.working_ml / self.ml <= MOST_CHANGE:
            return f"the lesion changes its volume: {way}"
        return None


def follow(dataset: str, subject: str, segmentation: "Volume", labels: Labels, geometry: Geometry) -> Truth:
    """The truth of a scan, followed to the working grid as preparation takes it there."""
    from cddpm.data.brain import voxel_ml  # ITK and nibabel: who only tells of a truth needs neither
    from cddpm.data.prepare import label_on_working_grid

    lesion = segmentation.data == 1
    voxels = int(np.count_nonzero(lesion))
    found = {label: labels.meaning(label) for label in segmentation.labels}
    if not voxels:
        return Truth(dataset, subject, found)
    cut = 1 - np.count_nonzero(lesion & field_of_view(geometry)) / voxels
    left = int(np.count_nonzero(label_on_working_grid(segmentation.data, geometry) == 1))
    x, y, z = geometry.working_voxel_size_mm
    return Truth(dataset, subject, found, voxels, voxels * voxel_ml(segmentation), cut, left, left * x * y * z / 1000)


@dataclass(frozen=True)
class TruthSum:
    """The truth of one unhealthy data set."""

    dataset: str
    scans: int
    with_lesion: int
    """Scans with lesion in their file."""
    scored: int
    """Scans with lesion on the working grid: those that have a Dice."""
    ml: float
    working_ml: float
    labels: dict[int, tuple[str, int]]
    """By label: its meaning, and in how many scans it is."""

    def __str__(self) -> str:
        words = ", ".join(
            f"{label} ({meaning}, {scans} scans)" for label, (meaning, scans) in sorted(self.labels.items())
        )
        return (
            f"{self.dataset}: {self.with_lesion} of {self.scans} scans have a lesion, {self.ml:.4g} ml together; {self.scored} "
            f"on the working grid, {self.working_ml:.4g} ml; labels {words or 'none'}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        labels = {str(label): {"meaning": m, "scans": n} for label, (m, n) in sorted(self.labels.items())}
        return {**asdict(self), "labels": labels}


def summed(truths: Iterable[Truth]) -> list[TruthSum]:
    """One sum per data set, in the order of the scans."""
    groups: defaultdict[str, list[Truth]] = defaultdict(list)
    for truth in truths:
        groups[truth.dataset].append(truth)
    return [_sum(dataset, group) for dataset, group in groups.items()]


def _sum(dataset: str, group: list[Truth]) -> TruthSum:
    counted = Counter(pair for truth in group for pair in truth.labels.items())
    return TruthSum(
        dataset=dataset,
        scans=len(group),
        with_lesion=sum(truth.voxels > 0 for truth in group),
        scored=sum(truth.working_voxels > 0 for truth in group),
        ml=sum(truth.ml for truth in group),
        working_ml=sum(truth.working_ml for truth in group),
        labels={label: (meaning, scans) for (label, meaning), scans in counted.items()},
    )
