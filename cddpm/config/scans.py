"""The section ``data``: which scans there are, and how they become what the network sees; each setting with its one default."""

import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cddpm.config.sections import FolderOrUri, Fraction, Frozen, Name, Positive
from cddpm.labels import PUBLISHED, Labels

ROUNDING = 1e-6
"""Quotients that are this near to a whole number are one: 21 / 1.4 is 15."""
USUAL_BRAIN_MM = (145.0, 180.0, 140.0)
"""From side to side, from front to back, and from the lowest slice with brain to the highest one, of an adult."""
PUBLISHED_SHAPE = (192, 192, 100)
"""Voxels of the window of each brain that the publication looks at."""
RescaleGrid = Literal["centred", "published"]


SEARCHED = ("intensities", "percentiles", "smoothing_iterations", "standard_range", "white_matter_peak")
"""Settings of ``DataConfig`` that a sweep may search: each value has a slice store of its own, of the same scans and shape."""


class PhantomConfig(Frozen):
    """The synthetic cohort that is made when no DATA_DIR is given."""

    size: Literal["small", "full"] = "small"
    """``full``: shapes and voxel sizes of the published data; ``small``: half of them along each axis."""
    seed: int = 0
    healthy_train: Positive = 24
    healthy_val: Positive = 4
    healthy_test: Positive = 6
    unhealthy_val: Positive = 5
    """Volumes per unhealthy data set, validation."""
    unhealthy_test: Positive = 8
    """Volumes per unhealthy data set, test."""


Peak = Literal["first", "largest", "last"]
WHITE_MATTER_PEAKS: dict[str, Peak] = {"t1": "last", "t2": "first", "flair": "largest", "pd": "first"}
"""Peak of white matter in the histogram of a brain, by modality. The published white stripe takes the largest of T2, which is
now white matter's, now grey matter's."""
Z_SCORE_RANGE = (-3.0, 3.0)
STRIPE_RANGES: dict[Peak, tuple[float, float]] = {
    "first": (-10.0, 60.0),
    "largest": (-30.0, 30.0),
    "last": (-60.0, 10.0),
}
"""Standard deviations of the stripe, a small part of the peak's, that become 0 and 1."""


class DataConfig(Frozen):
    """Which scans, and how they become what the network sees."""

    data_dir: FolderOrUri | None = None
    """Folder in the published layout, or ``s3://...`` with the same below it; empty: the phantom is made."""
    phantom: PhantomConfig = PhantomConfig()
    table: Path | None = None
    """CSV or YAML file that names the scans of data sets in any other layout; replaces the split files. Relative paths in
    it are relative to ``data_dir``, or to its own folder without one."""
    modality: Name = "t2"
    fold: Annotated[int, Field(ge=0)] = 0
    healthy: Name = "IXI"
    unhealthy: tuple[Name, ...] = ("Brats21", "MSLUB")
    splits: Literal["clean", "published", "strict"] = "clean"
    """A subject in two splits: ``clean`` drops it from training (and validation) with a warning, ``published`` keeps the
    rows as they are (reference behaviour), ``strict`` makes it an error. An unhealthy scan in validation and test is one
    always: no published table has any."""
    lesion_labels: dict[Name, tuple[Positive, ...]] = Field(default={})
    """By data set, ``{WMH: [1]}`` say: labels of segmentations that are the anomaly. Not named: 1 in MSLUB, ATLAS_v2 and WMH,
    every label above 0 in others. A label that is neither lesion nor ignored is an error."""
    ignored_labels: dict[Name, tuple[Positive, ...]] = Field(default={})
    """By data set: labels whose voxels count neither way, in no threshold and no metric. Not named: 2 (other pathology) in
    WMH, none in others."""
    orientation: Literal["LPS", "RAS", "stored"] = "LPS"
    """Axis directions of the working grid. ``stored`` keeps the array as it lies in the file (reference behaviour)."""
    voxel_size_mm: Annotated[float, Field(gt=0)] | None = 1.0
    """Scans of another voxel size are resampled to this first; empty: voxel size ignored (reference behaviour)."""
    volume_shape: tuple[Positive, Positive, Positive | None] = PUBLISHED_SHAPE
    """Voxels after cropping or padding around ``centre``. The last one empty (``[192, 192, null]``): all of each
    brain is looked at. There are as many axial slices as it needs, which training then sees too; where a plane of it is larger
    than the window, overlapping windows are predicted and blended."""
    centre: Literal["brain", "scan"] = "brain"
    """What comes to the middle of them: the ``brain`` (the box of its mask), so that cropping a scan to its brain changes
    nothing, or the ``scan``, wherever the brain lies in it (reference behaviour)."""
    rescale_factor: Annotated[float, Field(ge=1)] = 2.0
    """Downsampling after cropping: 192x192x100 becomes 96x96x50."""
    rescale_grid: RescaleGrid = "centred"
    """Sizes that ``rescale_factor`` does not divide: ``centred`` rounds down and keeps the centre, ``published`` rounds up
    and samples from (rescale_factor - 1) / 2 on, so that the last sample may lie outside of the crop (reference behaviour).
    Where it divides them, as 192x192x100 by 2, both are one grid."""
    intensities: Literal["percentiles", "landmarks", "white-stripe", "z-score"] = "percentiles"
    """How a scan's intensities come to [0, 1], by its brain alone. ``percentiles`` (reference behaviour): a line.
    ``landmarks``: lines between deciles, to where healthy training scans have them (Nyúl and Udupa 1999). ``white-stripe``:
    standard deviations around the peak of white matter (Shinohara et al. 2014). ``z-score``: around the brain's mean. The last
    two make all that is outside of the brain mask 0."""
    percentiles: tuple[float, float] = (1.0, 99.0)
    """Intensities at these percentiles inside the brain mask become 0 and 1; of ``percentiles`` and ``landmarks``."""
    landmarks: tuple[Fraction, ...] | None = None
    """What ``percentiles`` and the deciles between them become. Empty: learnt from the healthy training scans of ``fold``, in
    whose slice store, models and packages they are kept."""
    white_matter_peak: Literal["auto", "first", "largest", "last"] = "auto"
    """Which peak of the histogram is white matter's, from dark to bright; ``auto``: the last of t1, the first of t2 and
    pd, the largest of flair."""
    standard_range: tuple[float, float] | None = None
    """Of ``z-score`` and ``white-stripe``: standard deviations that become 0 and 1. Empty: -3 and 3 of ``z-score``; of
    ``white-stripe`` -60 and 10 (the peak is the last), -10 and 60 (the first), -30 and 30 (the largest)."""
    smoothing_iterations: Annotated[int, Field(ge=0)] = 3
    """Curvature flow steps of 0.125 on the image."""

    @property
    def preparation(self) -> str:
        """The settings that a sweep may search (``SEARCHED``) and that have a say, as JSON."""
        return self.model_dump_json(include=set(SEARCHED) - ({"percentiles"} if self.standardised else set()))

    @property
    def learns_landmarks(self) -> bool:
        """Whether preparation depends on the training scans of ``fold``."""
        return self.intensities == "landmarks" and self.landmarks is None

    @property
    def landmark_percentiles(self) -> tuple[float, ...]:
        """``percentiles``, and the deciles between them."""
        low, high = self.percentiles
        return (low, *(float(decile) for decile in range(10, 100, 10) if low < decile < high), high)

    @property
    def standard_limits(self) -> tuple[float, float]:
        """``standard_range``, or what it is when it is empty."""
        if self.standard_range is not None:
            return self.standard_range
        return STRIPE_RANGES[self.known_peak] if self.intensities == "white-stripe" else Z_SCORE_RANGE

    @property
    def standardised(self) -> bool:
        """Whether intensities are counted from a centre, so that the background has no place of its own."""
        return self.intensities in ("white-stripe", "z-score")

    @property
    def known_peak(self) -> Peak:
        """Peak of the white matter of this modality; ``_possible`` refuses one that ``auto`` does not know."""
        return WHITE_MATTER_PEAKS[self.modality] if self.white_matter_peak == "auto" else self.white_matter_peak

    def working_size(self, voxels: int) -> int:
        """Samples over so many voxels of one axis of a volume, rounded as ``rescale_grid`` says."""
        return _samples(voxels / self.rescale_factor, self.rescale_grid)

    @property
    def working_shape(self) -> tuple[int, int, int | None]:
        """(X, Y, Z) of the volumes that the network sees; Z empty where each brain decides."""
        x, y, z = self.volume_shape
        return self.working_size(x), self.working_size(y), None if z is None else self.working_size(z)

    @property
    def whole_brain(self) -> bool:
        """Whether all of each brain is looked at: every slice, and what a plane holds beyond the window's rows and columns."""
        return self.volume_shape[2] is None

    @property
    def usual_shape(self) -> tuple[int, int, int]:
        """``working_shape``, or what of an adult's brain is looked at where that is all of it: for forecasts."""
        x, y, z = self.working_shape
        if z is not None:
            return x, y, z
        brain = [self.working_size(round(mm / (self.voxel_size_mm or 1))) for mm in USUAL_BRAIN_MM]
        return max(x, brain[0]), max(y, brain[1]), brain[2]

    @property
    def slice_shape(self) -> tuple[int, int]:
        """(H, W) of the slices that the network sees."""
        return self.working_shape[:2]

    @model_validator(mode="after")
    def _possible(self) -> Self:
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise ValueError(f"percentiles: {low}, {high}: allowed is 0 <= low < high <= 100")
        if faults := [*self._intensity_faults()]:
            raise ValueError("\n".join(faults))
        if len(set(self.unhealthy)) != len(self.unhealthy):
            raise ValueError(f"unhealthy: {', '.join(self.unhealthy)}: a data set is named twice")
        for setting, named in (("lesion_labels", self.lesion_labels), ("ignored_labels", self.ignored_labels)):
            for dataset in sorted(named.keys() - {self.healthy, *self.unhealthy}):
                known = ", ".join((self.healthy, *self.unhealthy))
                raise ValueError(f"{setting}: '{dataset}' is none of the data sets {known}")
        for dataset, lesion in self.lesion_labels.items():
            both = sorted({*lesion} & {*self.ignored_labels.get(dataset, ())})
            if both:
                raise ValueError(f"ignored_labels: {both} of {dataset} stand in lesion_labels too; name each once")
        return self

    def _intensity_faults(self) -> Iterator[str]:
        kind, count = self.intensities, len(self.landmark_percentiles)
        if self.landmarks is not None and kind != "landmarks":
            yield f"landmarks: would be ignored by intensities '{kind}'; only 'landmarks' reads them"
        elif self.landmarks is not None and not _rises_from_0_to_1(self.landmarks, count):
            yield f"landmarks: {list(self.landmarks)}: allowed are {count} numbers that rise from 0 to 1 (percentiles decide)"
        if self.white_matter_peak != "auto" and kind != "white-stripe":
            yield f"white_matter_peak: '{self.white_matter_peak}' would be ignored by intensities '{kind}'"
        if kind == "white-stripe" and self.white_matter_peak == "auto" and self.modality not in WHITE_MATTER_PEAKS:
            yield (
                f"white_matter_peak: 'auto' knows that of {', '.join(WHITE_MATTER_PEAKS)}; modality is '{self.modality}': "
                "name first, largest or last"
            )
        if self.standard_range is not None and not self.standardised:
            yield f"standard_range: would be ignored by intensities '{kind}'; only white-stripe and z-score read it"
        if self.standard_range is not None and not self.standard_range[0] < self.standard_range[1]:
            yield f"standard_range: {list(self.standard_range)}: the first number must be below the second"

    def labels_of(self, dataset: str) -> Labels:
        """What the labels of a data set's segmentations mean: as set, else as published."""
        known = PUBLISHED.get(dataset, Labels())
        lesion = self.lesion_labels.get(dataset)
        ignored = self.ignored_labels.get(dataset)
        if ignored is None:
            ignored = tuple(label for label in known.ignored if label not in (lesion or ()))
        if lesion is None and known.lesion is not None:
            lesion = tuple(label for label in known.lesion if label not in ignored)
        return Labels(lesion, ignored)


def _rises_from_0_to_1(numbers: tuple[float, ...], count: int) -> bool:
    rises = all(one < other for one, other in pairwise(numbers))
    return len(numbers) == count and rises and (numbers[0], numbers[-1]) == (0.0, 1.0)


def _samples(quotient: float, grid: RescaleGrid) -> int:
    match grid:
        case "centred":
            return max(1, math.floor(quotient + ROUNDING))
        case "published":
            return math.ceil(quotient - ROUNDING)
    raise AssertionError(grid)
