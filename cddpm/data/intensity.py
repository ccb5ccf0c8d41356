"""How a scan's intensities become what the network sees, [0, 1]: by percentiles, landmarks, a white stripe or z-scores.

Each option makes an ``IntensityMap`` of the intensities of the brain's voxels alone, so that neither offset and scale of a scan
nor what lies outside of its brain matter. Letters: N brain voxels, K landmarks.

TorchIO's ``HistogramStandardization`` does the same as ``landmarks`` here, and the tests compare the two. It is not used: it
learns from files in one process, is bound to the 1st and 99th percentile, takes landmarks of a scan for one where they are
nearer than 1e-5 (so that the scale of a scan matters), and has no way back.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage, signal

from cddpm.config import DataConfig, Peak
from cddpm.errors import DataError

Floats = npt.NDArray[np.floating[Any]]


class FlatBrainError(ValueError):
    """A brain whose intensities cannot be told apart; the text says what was found."""


@dataclass(frozen=True)
class IntensityMap:
    """Ascending, and linear between ``points`` (intensities of the scan), which become ``values`` (0 first, 1 last)."""

    points: tuple[float, ...]
    values: tuple[float, ...] = (0.0, 1.0)

    def __call__(self, intensities: Floats) -> npt.NDArray[np.float32]:
        """What ``intensities`` of any shape become; those beyond the ends become 0 and 1."""
        low, high = np.float64(self.points[0]), np.float64(self.points[-1])
        if len(self.points) == 2:
            return ((np.clip(intensities, low, high) - low) / (high - low)).astype(np.float32)
        return np.interp(intensities, self.points, self.values).astype(np.float32)

    def back(self, values: Floats) -> Floats:
        """The intensities that became ``values``; beyond 0 and 1 the outermost lines go on."""
        low, high = self.points[0], self.points[-1]
        if len(self.points) == 2:
            return low + (high - low) * values
        inside = np.interp(values, self.values, self.points)
        below, above = np.minimum(values, 0.0), np.maximum(values, 1.0) - 1.0
        return inside + below * self._slope(0) + above * self._slope(-2)

    def _slope(self, first: int) -> float:
        """Intensities per value, on the line from the point ``first`` to the next."""
        second = first + 1
        return (self.points[second] - self.points[first]) / (self.values[second] - self.values[first])

    def of_file(self, scale: float, offset: float) -> "IntensityMap":
        """The same map of intensities that are ``scale`` times these plus ``offset``."""
        return IntensityMap(tuple(point * scale + offset for point in self.points), self.values)


def intensity_map(brain: Floats, data: DataConfig) -> IntensityMap:
    """The map of a scan by the intensities (N,) of its brain, as ``data.intensities`` says.

    Raises ``FlatBrainError`` for a brain without contrast, ``DataError`` for landmarks that were not learnt.
    """
    match data.intensities:
        case "percentiles":
            return _between_percentiles(brain, data.percentiles)
        case "landmarks":
            if data.landmarks is None:
                raise DataError(
                    "data.landmarks: empty; they are learnt when the slice store of a fold is made, and go with its models"
                )
            return _to_landmarks(brain, data)
        case "white-stripe":
            return _standardised(*white_stripe(brain, data.known_peak), data.standard_limits)
        case "z-score":
            mean, deviation = float(brain.mean(dtype=np.float64)), float(brain.std(dtype=np.float64))
            if not deviation > 0:
                raise FlatBrainError(f"intensity {mean:g} everywhere inside the brain mask")
            return _standardised(mean, deviation, data.standard_limits)
    raise AssertionError(data.intensities)


def _between_percentiles(brain: Floats, percentiles: tuple[float, float]) -> IntensityMap:
    low, high = np.percentile(brain, percentiles)
    if low == high:
        raise FlatBrainError(f"intensity {low:g} at both percentiles {percentiles} inside the brain mask")
    return IntensityMap((float(low), float(high)))


def _standardised(centre: float, deviation: float, limits: tuple[float, float]) -> IntensityMap:
    return IntensityMap((centre + limits[0] * deviation, centre + limits[1] * deviation))


def quantiles(brain: Floats, data: DataConfig) -> tuple[float, ...]:
    """The K intensities of a brain (N,) that are aligned: at ``data.percentiles``, and at the deciles between them."""
    return tuple(np.percentile(brain, data.landmark_percentiles).astype(float).tolist())


def learnt_landmarks(scans: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Landmarks (K,) on the scale of [0, 1] from the ``quantiles`` of the training scans, in any order.

    Of each scan the outermost quantiles become 0 and 1; a landmark is the mean over scans of where the others come to lie
    (Nyúl and Udupa 1999; deciles as in Nyúl, Udupa and Zhang 2000). Sums are exact, so that the order of scans changes no bit.
    Raises ``DataError`` where two landmarks fall together.
    """
    placed = [[(q - scan[0]) / (scan[-1] - scan[0]) for q in scan] for scan in scans]
    means = tuple(math.fsum(column) / len(placed) for column in zip(*placed, strict=True))
    if any(not one < other for one, other in pairwise(means)):
        raise DataError(
            f"data.intensities: landmarks {[round(mean, 4) for mean in means]} of the training scans do not rise; scans of few "
            "distinct intensities have none: take percentiles"
        )
    return means


def _to_landmarks(brain: Floats, data: DataConfig) -> IntensityMap:
    assert data.landmarks is not None
    points = quantiles(brain, data)
    if points[0] == points[-1]:
        raise FlatBrainError(f"intensity {points[0]:g} at both percentiles {data.percentiles} inside the brain mask")
    kept = [points[0], *sorted({p for p in points if points[0] < p < points[-1]}), points[-1]]
    if len(kept) == len(points):
        return IntensityMap(points, data.landmarks)
    # landmarks that fall together in this scan: the middle of what they become, and the ends stay
    aimed = {p: [v for q, v in zip(points, data.landmarks, strict=True) if q == p] for p in kept}
    values = [0.0, *(math.fsum(aimed[p]) / len(aimed[p]) for p in kept[1:-1]), 1.0]
    return IntensityMap(tuple(kept), tuple(values))


STRIPE = 0.05
"""Half the width of the stripe, as a fraction of the brain's voxels (Shinohara et al. 2014: tau = 5 %)."""
_BINS = 512
_BANDWIDTH = 0.02
"""Standard deviation of the histogram's smoothing, as a part of the range between the 1st and 99th percentile."""
_LEAST_HEIGHT = 1 / 3
"""A lower peak, against the highest, is no tissue's."""


def white_stripe(brain: Floats, peak: Peak) -> tuple[float, float]:
    """Mean and standard deviation of the voxels around the peak of white matter, among the intensities (N,) of a brain.

    Those between the quantiles F(peak) - tau and F(peak) + tau (Shinohara et al. 2014, NeuroImage: Clinical 6, section 2.3).
    Raises ``FlatBrainError`` where they are all alike.
    """
    values = np.sort(brain.astype(np.float64).ravel())
    at = np.searchsorted(values, histogram_peak(values, peak)) / values.size
    first, last = max(0.0, at - STRIPE) * values.size, min(1.0, at + STRIPE) * values.size
    stripe = values[round(first) : max(round(last), round(first) + 1)]
    deviation = float(stripe.std())
    if not deviation > 0:
        raise FlatBrainError(f"intensity {stripe[0]:g} all over the peak of its histogram inside the brain mask")
    return float(stripe.mean()), deviation


def histogram_peak(brain: Floats, peak: Peak) -> float:
    """The intensity at a peak of the smoothed histogram of a brain (N,): of those at least a third as high as the highest.

    A voxel counts for the two bins that it lies between, so that the histogram follows intensities without steps; the top
    is that of the parabola through the three highest bins. Raises ``FlatBrainError`` for a brain without contrast.
    """
    low, high = (float(q) for q in np.percentile(brain, (1, 99)))
    if low == high:
        raise FlatBrainError(f"intensity {low:g} at the percentiles 1 and 99 inside the brain mask")
    width = (high - low) / (_BINS - 1)
    place = (brain[(brain >= low) & (brain <= high)].astype(np.float64) - low) / width
    bins = np.minimum(place.astype(np.int64), _BINS - 2)
    part = place - bins
    counts = np.bincount(bins, 1 - part, _BINS) + np.bincount(bins + 1, part, _BINS)
    margin = int(4 * _BANDWIDTH * _BINS)
    height = ndimage.gaussian_filter1d(np.pad(counts, margin), _BANDWIDTH * _BINS, mode="constant")
    tops, _ = signal.find_peaks(height, height=_LEAST_HEIGHT * height.max())
    top = {"first": tops[0], "last": tops[-1], "largest": tops[np.argmax(height[tops])]}[peak]
    before, there, after = height[top - 1 : top + 2]
    return low + width * (top - margin + 0.5 * (before - after) / (before - 2 * there + after))
