"""Pictures by which a person judges a result: input, reconstruction, anomaly map and segmentation against the truth.

Arrays are (S, H, W) in LPS orientation: axis H runs to the patient's left, axis W to the back. Slices are drawn in the
radiological convention, as if seen from the feet: front up, patient's left on the right.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cddpm.artifact import storage_errors
from cddpm.config import ScoringConfig
from cddpm.scoring.score import Row, Scorer

_COLUMNS = ("Input", "Reconstruction", "Anomaly map")
_CELL_INCHES = 2.7
_RED, _GREEN = (1.0, 0.15, 0.1), (0.2, 1.0, 0.3)


@dataclass(frozen=True)
class OverviewRow:
    """One volume of an overview; arrays are (S, H, W)."""

    label: str
    """Why it is shown: ``best``, ``median``, ``worst``."""
    dataset: str
    volume: str
    dice: float | None
    threshold: float
    image: NDArray[np.floating]
    reconstruction: NDArray[np.floating]
    anomaly_map: NDArray[np.floating]
    segmentation: NDArray[np.bool_]
    truth: NDArray[np.bool_] | None
    """None where nobody has segmented the volume."""
    slice: int | None = None
    """Axial slice to show; empty: ``slice_to_show``."""


def choose(rows: Sequence[Row]) -> list[tuple[str, Row]]:
    """The best, the median and the worst volume by Dice of a per-volume table, as (label, row); fewer if it is short.

    Volumes without a Dice are left out; the median of an even number is its lower one; ties go by volume name.
    """
    ranked = sorted((row for row in rows if row["dice"] is not None), key=lambda row: (-row["dice"], row["volume"]))
    if not ranked:
        return []
    picks = {0: "best", len(ranked) // 2: "median", len(ranked) - 1: "worst"}
    if len(ranked) < 3:
        picks = {len(ranked) - 1: "worst", 0: "best"}
    return [(picks[i], ranked[i]) for i in sorted(picks)]


def overview_rows(scorer: Scorer, scoring: ScoringConfig, rows: Sequence[Row]) -> list[OverviewRow]:
    """The chosen volumes of a per-volume table (see ``choose``) with their arrays, for ``overview``."""
    return [_with_arrays(scorer, scoring, label, row) for label, row in choose(rows)]


def _with_arrays(scorer: Scorer, scoring: ScoringConfig, label: str, row: Row) -> OverviewRow:
    v, threshold = row["volume_index"], row["threshold"]
    anomaly_map, segmentation = scorer.anomaly_map(v, scoring).copy(), scorer.segmentation(v, scoring, threshold)
    for shown in (anomaly_map, segmentation):  # what counts neither way is not shown as found
        shown.ravel()[scorer.store.ignored(v)] = 0
    return OverviewRow(
        label=label,
        dataset=row["dataset"],
        volume=row["volume"],
        dice=row["dice"],
        threshold=threshold,
        image=scorer.store.image(v),
        reconstruction=scorer.reconstruction(v, scoring),
        anomaly_map=anomaly_map,
        segmentation=segmentation,
        truth=scorer.store.segmentation(v) > 0,
    )


def slice_to_show(truth: NDArray[np.bool_] | None, anomaly_map: NDArray[np.floating]) -> int:
    """Index of the axial slice with most lesion voxels; without lesion, the one with the highest summed anomaly."""
    if truth is not None and truth.any():
        return int(np.argmax(truth.sum(axis=(1, 2))))
    return int(np.argmax(anomaly_map.astype(np.float32).sum(axis=(1, 2))))


def overview(rows: Sequence[OverviewRow], path: Path) -> None:
    """Draw one line of four pictures per volume into the file ``path`` (PNG or another format by its ending).

    Raises ``ValueError`` without rows, ``StorageError`` if the disk refuses.
    """
    if not rows:
        raise ValueError("overview: no volumes to draw; give at least one row")
    figure = Figure(figsize=(4 * _CELL_INCHES + 1.0, len(rows) * (_CELL_INCHES + 0.35) + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    figure.set_facecolor("white")
    lines = figure.subfigures(len(rows), 1, squeeze=False)
    for line, row in zip(lines[:, 0], rows, strict=True):
        _draw_line(line, row)
    with storage_errors(path), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in letters that the font lacks
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)


def _draw_line(line: Any, row: OverviewRow) -> None:
    index = slice_to_show(row.truth, row.anomaly_map) if row.slice is None else row.slice
    image = _upright(row.image[index])
    scores = _upright(row.anomaly_map[index])
    axes = line.subplots(1, 4)
    line.suptitle(_title(row, index), parse_math=False, fontsize=9, x=0.01, ha="left")
    _grey(axes[0], image)
    _mark_sides(axes[0])
    _grey(axes[1], _upright(row.reconstruction[index]))
    top = max(float(row.anomaly_map.max()), row.threshold, 1e-6)
    drawn = axes[2].imshow(scores, cmap="hot", vmin=0.0, vmax=top, interpolation="nearest")
    bar = line.colorbar(drawn, ax=axes[2], fraction=0.046, pad=0.02)
    bar.ax.axhline(row.threshold, color=_GREEN, linewidth=1.5)
    bar.ax.tick_params(labelsize=7)
    _grey(axes[3], image)
    _overlay(axes[3], _upright(row.segmentation[index]), None if row.truth is None else _upright(row.truth[index]))
    last = "Segmentation (red)" if row.truth is None else "Segmentation (red), truth (green line)"
    for axis, name in zip(axes, (*_COLUMNS, last), strict=True):
        axis.set_title(name, fontsize=8)
        axis.set_axis_off()


def _title(row: OverviewRow, index: int) -> str:
    names = [name for name in (row.dataset, row.volume) if name]
    if row.truth is not None:
        names.append("no lesion" if row.dice is None else f"Dice {row.dice:.3f}")
    return f"{row.label}: {', '.join(names)}  (slice {index}, threshold {row.threshold:.3g})"


def _upright(plane: NDArray) -> NDArray:
    """(H, W) = (to the left, to the back) -> picture rows from front to back, columns from the patient's right to left."""
    return np.asarray(plane).T


def _grey(axis: Axes, plane: NDArray) -> None:
    axis.imshow(plane.astype(np.float32), cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")


def _mark_sides(axis: Axes) -> None:
    for x, y, letter in ((0.03, 0.5, "R"), (0.97, 0.5, "L"), (0.5, 0.97, "A"), (0.5, 0.03, "P")):
        axis.text(
            x, y, letter, transform=axis.transAxes, color="yellow", fontsize=7, ha="center", va="center", clip_on=True
        )


def _overlay(axis: Axes, segmentation: NDArray, truth: NDArray | None) -> None:
    colours = np.zeros((*segmentation.shape, 4), np.float32)
    colours[segmentation] = (*_RED, 0.6)
    axis.imshow(colours, interpolation="nearest")
    if truth is not None and truth.any():
        axis.contour(truth.astype(np.float32), levels=[0.5], colors=[_GREEN], linewidths=1.0)
