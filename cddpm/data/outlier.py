"""Which scans of a cohort are unlike the others: each figure against the median of its data set and modality, in words.

Scans are compared within their data set: scanners and sites differ more than the scans of one of them.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cddpm.data.quality import FIGURES, Figure, Measured
from cddpm.text.numbers import number, percent

FEWEST = 5
"""Fewer scans than this have no usual value."""
ODD = 3.5
"""|z| above which a value is called an outlier (Iglewicz and Hoaglin 1993)."""
MOST_REASONS = 3
_MAD_TO_SIGMA = 1.4826

Group = tuple[str, str]
"""Data set and modality."""


@dataclass(frozen=True)
class Value:
    """One figure of one scan, its robust z, and the median of its group; None: not known, or nothing to compare with."""

    value: float | None
    z: float | None = None
    usual: float | None = None


@dataclass(frozen=True)
class Judged:
    """All figures of one scan, by their keys."""

    values: Mapping[str, Value]

    @property
    def score(self) -> float:
        """The largest |z|, 0 if there is none."""
        return max((abs(one.z) for one in self.values.values() if one.z is not None), default=0.0)

    def reasons(self, figures: Sequence[Figure]) -> list[str]:
        """What is odd, the oddest first: ``noise 8.1 %, usually 2.4 % (z 12)``."""
        known = [(figure, self.values[figure.key]) for figure in figures if figure.key in self.values]
        odd = [(figure, one) for figure, one in known if one.z is not None and abs(one.z) > ODD]
        odd.sort(key=lambda pair: -abs(pair[1].z or 0.0))
        return [_said(figure, one) for figure, one in odd[:MOST_REASONS]]


def shown(figure: Figure, value: float | None) -> str:
    """A figure's value as a person reads it."""
    return percent(value) if figure.percent and value is not None else number(value)


def _said(figure: Figure, one: Value) -> str:
    return f"{figure.name} {shown(figure, one.value)}, usually {shown(figure, one.usual)} (z {one.z:+.1f})"


def judge(
    scans: Sequence[tuple[Group, Measured | None, Mapping[str, float]]], figures: Sequence[Figure] = FIGURES
) -> list[Judged]:
    """Every scan judged among those of its group; ``scans``: its group, what was measured, and further figures of it."""
    members: defaultdict[Group, list[int]] = defaultdict(list)
    for index, (group, _, _) in enumerate(scans):
        members[group].append(index)
    values: list[dict[str, Value]] = [{} for _ in scans]
    for indices in members.values():
        measured = [scans[index][1] for index in indices]
        columns = _columns(measured, [scans[index][2] for index in indices])
        for figure in figures:
            column = columns.get(figure.key, [None] * len(indices))
            for index, one in zip(indices, _compared(figure, column), strict=True):
                values[index][figure.key] = one
    return [Judged(found) for found in values]


def _columns(
    measured: Sequence[Measured | None], further: Sequence[Mapping[str, float]]
) -> dict[str, list[float | None]]:
    """By key, one value per scan of a group."""
    single = [{**(dict(one.figures) if one else {}), **more} for one, more in zip(measured, further, strict=True)]
    keys = dict.fromkeys(key for one in single for key in one)
    columns: dict[str, list[float | None]] = {key: [one.get(key) for one in single] for key in keys}
    return {**columns, "histogram": histogram_distances(measured), "mask_overlap": mask_overlaps(measured)}


def _compared(figure: Figure, column: Sequence[float | None]) -> list[Value]:
    known = np.array([np.nan if value is None else value for value in column], np.float64)
    scale = np.log1p(np.maximum(known, 0)) if figure.logarithmic else known
    scores = robust_z(scale, figure.least)
    there = known[np.isfinite(known)]
    usual = float(np.median(there)) if there.size >= FEWEST else None
    return [Value(_finite(value), _finite(z), usual) for value, z in zip(known.tolist(), scores.tolist(), strict=True)]


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def robust_z(values: npt.NDArray[np.float64], least: float) -> npt.NDArray[np.float64]:
    """(value - median) / (1.4826 MAD), NaN for NaN, and for all where fewer than ``FEWEST`` are known.

    The divisor is ``least`` at the least: where nearly all scans have one value, not every other one is an outlier.
    """
    known = values[np.isfinite(values)]
    if known.size < FEWEST:
        return np.full(values.shape, np.nan)
    middle = np.median(known)
    spread = max(_MAD_TO_SIGMA * float(np.median(np.abs(known - middle))), least)
    return np.asarray((values - middle) / spread)


def histogram_distances(measured: Sequence[Measured | None]) -> list[float | None]:
    """Wasserstein-1 distance of each scan's intensities to the group's median histogram, in parts of their range.

    The pointwise median of quantile functions is the histogram that has the least summed distance to all.
    """
    known = [one.quantiles for one in measured if one]
    if len(known) < FEWEST:
        return [None] * len(measured)
    middle = np.median(np.array(known), axis=0)
    return [float(np.abs(np.array(one.quantiles) - middle).mean()) if one else None for one in measured]


def mask_overlaps(measured: Sequence[Measured | None]) -> list[float | None]:
    """Dice of each mask with the voxels that at least half of the group's masks hold, of those on the grid of most."""
    grids = Counter(one.grid for one in measured if one)
    grid, count = next(iter(grids.most_common(1)), (None, 0))
    if count < FEWEST:
        return [None] * len(measured)
    half = np.mean([one.mask for one in measured if one and one.grid == grid], axis=0) >= 0.5
    return [_dice(one.mask, half) if one and one.grid == grid else None for one in measured]


def _dice(one: npt.NDArray[np.bool_], other: npt.NDArray[Any]) -> float:
    together = int(np.count_nonzero(one)) + int(np.count_nonzero(other))
    return 2 * int(np.count_nonzero(one & other)) / max(together, 1)


def further_figures(names: Iterable[str]) -> tuple[Figure, ...]:
    """Columns for figures that preparation has told, by their names."""
    return tuple(
        Figure(name, name.replace("_", " "), "as the manifest of preparation says", 1e-3)
        for name in dict.fromkeys(names)
    )
