"""A volume as a page carries it: one byte per voxel; scores lose nothing at any threshold on offer.

A slider has up to 255 thresholds, its **stops**. A voxel's score is kept as the number of stops strictly below it, its
**level**: "score > stop i" is then exactly "level > i", so that every count in the page, and every Dice of counts, is the one
of the map itself, whatever its number type.
"""

import base64
import gzip
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cddpm.scoring import metrics
from cddpm.scoring.figures import slice_to_show

MOST_STOPS = 255
SEGMENTED, LESION = 1, 2
"""Bits of a voxel's mark."""


@dataclass(frozen=True)
class Exhibit:
    """One volume to look at. Arrays (X, Y, Z) point to the patient's left, back and head (LPS)."""

    name: str
    image: NDArray[np.floating]
    reconstruction: NDArray[np.floating]
    """In the unit of ``image``."""
    window: tuple[float, float]
    """Intensities that are drawn black and white, in both."""
    anomaly_map: NDArray[np.floating]
    """>= 0; what the threshold acts on."""
    segmentation: NDArray[np.bool_]
    """As it was kept, at ``threshold``."""
    truth: NDArray[np.bool_] | None
    """None where nobody has segmented the volume."""
    threshold: float
    """The operating point, fixed before this volume was seen."""
    voxel_size_mm: tuple[float, float, float]
    note: str
    """What is in the map and in the segmentation, and on which grid."""


def stops(anomaly_map: NDArray[np.floating], threshold: float) -> NDArray[np.float64]:
    """Thresholds on offer, rising: even steps, and ``threshold`` itself to the last bit.

    The steps go from 0 to the largest score, or to ``threshold`` if that is larger, and are float32 numbers.
    """
    top = max(float(anomaly_map.max(initial=0.0)), threshold)
    even = np.linspace(0.0, top, MOST_STOPS - 1).astype(np.float32).astype(np.float64)
    return np.unique(np.append(even[even <= top], threshold))


def levels(anomaly_map: NDArray[np.floating], thresholds: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Per voxel the number of ``thresholds`` (rising, up to 255) strictly below its score."""
    return np.searchsorted(thresholds, anomaly_map.astype(np.float64), side="left").astype(np.uint8)


def packed(exhibit: Exhibit) -> str:
    """The volume as JSON that may stand inside a script element: what is known of it, and its voxels as base64 of gzip.

    Voxels outside of the smallest box with anything in it are left out. Four blocks of (Z, Y, X) bytes follow each other:
    image, reconstruction, levels, marks; each byte is kept as its difference (mod 256) to the one before, which packs smaller.
    """
    thresholds = stops(exhibit.anomaly_map, exhibit.threshold)
    box = _box(exhibit)
    truth = np.zeros(exhibit.segmentation.shape, bool) if exhibit.truth is None else exhibit.truth
    blocks = [
        _shades(exhibit.image[box], exhibit.window),
        _shades(exhibit.reconstruction[box], exhibit.window),
        levels(exhibit.anomaly_map[box], thresholds),
        SEGMENTED * exhibit.segmentation[box].astype(np.uint8) + LESION * truth[box].astype(np.uint8),
    ]
    voxels = np.concatenate([block.transpose(2, 1, 0).ravel() for block in blocks])
    steps = np.diff(voxels, prepend=np.uint8(0))
    found = {
        "name": exhibit.name,
        "shape": [part.stop - part.start for part in box],
        "first": [part.start for part in box],
        "whole": list(exhibit.anomaly_map.shape),
        "voxel_size_mm": list(exhibit.voxel_size_mm),
        "stops": thresholds.tolist(),
        "threshold": exhibit.threshold,
        "truth": exhibit.truth is not None,
        "kept_dice": None if exhibit.truth is None else metrics.dice(exhibit.segmentation, truth),
        "slice": _first_slice(exhibit) - box[2].start,
        "note": exhibit.note,
        "voxels": base64.b64encode(gzip.compress(steps.tobytes(), compresslevel=6, mtime=0)).decode(),
    }
    return json.dumps(found).replace("<", "\\u003c")


def _box(exhibit: Exhibit) -> tuple[slice, slice, slice]:
    """Smallest box with everything that is not 0; the whole volume if all is."""
    there: NDArray[np.bool_] = (exhibit.image != 0) | (exhibit.anomaly_map > 0) | exhibit.segmentation
    if exhibit.truth is not None:
        there = there | exhibit.truth
    sides: list[Any] = []
    for axis in range(3):
        used = np.flatnonzero(there.any(axis=tuple(a for a in range(3) if a != axis)))
        sides.append(slice(int(used[0]), int(used[-1]) + 1) if used.size else slice(0, there.shape[axis]))
    return sides[0], sides[1], sides[2]


def _shades(array: NDArray[np.floating], window: tuple[float, float]) -> NDArray[np.uint8]:
    low, high = window
    return np.rint(255 * np.clip((array.astype(np.float32) - low) / max(high - low, 1e-9), 0, 1)).astype(np.uint8)


def _first_slice(exhibit: Exhibit) -> int:
    """The axial slice with most lesion, else with most that is segmented, else of the highest summed score."""
    truth = exhibit.truth if exhibit.truth is not None and exhibit.truth.any() else exhibit.segmentation
    return slice_to_show(truth.transpose(2, 0, 1), exhibit.anomaly_map.transpose(2, 0, 1))
