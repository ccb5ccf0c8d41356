"""Residuals in units of what healthy brains leave: z = (r - mean) / standard deviation.

Mean and deviation are those over the brain voxels of healthy validation volumes, per noise level, so that levels whose
residuals are large everywhere do not outweigh the others when they are combined. Of one residual alone, a z-score over all
voxels changes no ranking, only the unit of the threshold. By intensity (mean and deviation among voxels that are about as
bright in the input, in ``INTENSITY_BINS``) it changes the ranking too: tissue that is hard to restore in healthy brains must
stand out more. Both are ours; statistics voxel by voxel would need the brains registered to each other.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cddpm.config import ScoringConfig
from cddpm.errors import ArtifactError

INTENSITY_BINS = 16
"""Of equal width over [0, 1]; what lies outside counts in the outermost."""
FEWEST_VOXELS = 100
"""A bin with fewer has the statistics of all voxels."""
SMALLEST_DEVIATION = 1e-6

Statistics = dict[str, dict[str, list[float]]]
"""Per noise level (or ``all`` of them as one) ``mean`` and ``deviation``, one number per bin. Plain JSON data."""
Calibration = Callable[[ScoringConfig], Statistics]
Sums = dict[str, NDArray[np.float64]]
"""Per noise level number, sum and sum of squares of the residuals of each bin; (3, bins)."""


def bins(normalise: Literal["none", "healthy-z", "healthy-z-by-intensity"]) -> int:
    """Bins of intensity that are told apart. Raises ``ValueError`` for ``none``."""
    if normalise == "healthy-z":
        return 1
    if normalise == "healthy-z-by-intensity":
        return INTENSITY_BINS
    raise ValueError(f"normalise: {normalise!r} needs no statistics")


def sums(
    residuals: Iterable[tuple[str, NDArray[np.float32]]],
    image: NDArray[np.floating[Any]],
    brain: NDArray[np.bool_],
    count: int,
) -> Sums:
    """What the residuals of one healthy volume add to the statistics; arrays (S, H, W), ``count`` bins."""
    where = _bin(image[brain], count)
    table: Sums = {}
    for name, residual in residuals:
        r = residual[brain].astype(np.float64)
        part = np.stack([np.bincount(where, weights, count) for weights in (np.ones_like(r), r, r * r)]).astype(
            np.float64
        )
        table[name] = table[name] + part if name in table else part
    return table


def statistics(volumes: Iterable[Sums]) -> Statistics:
    """Mean and population standard deviation per bin over all volumes together."""
    total: Sums = {}
    for volume in volumes:
        for name, part in volume.items():
            total[name] = total[name] + part if name in total else part
    return {name: _of_bins(part) for name, part in total.items()}


def _of_bins(part: NDArray[np.float64]) -> dict[str, list[float]]:
    few = part[0] < FEWEST_VOXELS
    part = np.where(few, part.sum(axis=1, keepdims=True), part)
    mean = part[1] / np.maximum(part[0], 1)
    variance = part[2] / np.maximum(part[0], 1) - mean**2
    deviation = np.sqrt(np.maximum(variance, SMALLEST_DEVIATION**2))
    return {"mean": mean.tolist(), "deviation": deviation.tolist()}


def standardised(
    residual: NDArray[np.float32], image: NDArray[np.floating[Any]], found: Mapping[str, list[float]]
) -> NDArray[np.float32]:
    """z-scores (S, H, W) of a residual of ``image`` with the statistics of its level; may be negative."""
    mean, deviation = (np.asarray(found[name], np.float32) for name in ("mean", "deviation"))
    where = _bin(image, mean.size)
    return (residual - mean[where]) / deviation[where]


def _bin(image: NDArray[np.floating[Any]], count: int) -> NDArray[np.intp]:
    return np.clip(image.astype(np.float32) * np.float32(count), 0, count - 1).astype(np.intp)


def given(found: Statistics | None) -> Calibration:
    """The calibration of statistics that were kept. Asking for it raises ``ArtifactError`` if there are none."""

    def answer(scoring: ScoringConfig) -> Statistics:
        if found is None:
            raise ArtifactError(
                f"scoring.normalise: '{scoring.normalise}' needs the statistics of healthy validation residuals, and none "
                "were kept with this result; search its scoring settings again"
            )
        return found

    return answer
