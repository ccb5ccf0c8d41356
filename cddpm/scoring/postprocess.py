"""From a residual map to an anomaly map, and from an anomaly map to a segmentation."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cddpm.config import ScoringConfig
from cddpm.scoring.median import median_filter
from cddpm.scoring.operating_point import threshold_bits

_TOUCHING = np.ones((3, 3, 3), bool)
SMALLEST_SHELL = 26
"""Voxels of the smallest component that can enclose a hole: all neighbours of one voxel."""


@dataclass(frozen=True)
class ComponentRule:
    """What a component is, and how its size is told."""

    connectivity: Literal[6, 18, 26] = 26
    """Neighbours of a voxel that belong to its component."""
    size: Literal["filled", "voxels"] = "filled"
    """With the holes in it, or without. A hole is what no path of touching (26) voxels leads to from outside."""

    @property
    def structure(self) -> NDArray[np.bool_]:
        """Neighbourhood (3, 3, 3) for SciPy."""
        return ndimage.generate_binary_structure(3, {6: 1, 18: 2, 26: 3}[self.connectivity])


AS_PUBLISHED = ComponentRule()


def component_rule(scoring: ScoringConfig) -> ComponentRule:
    """What the component filter of ``scoring`` takes for a component, and for its size."""
    return ComponentRule(scoring.connectivity, scoring.component_size)


def anomaly_map(residual: NDArray[np.float16], mask: NDArray[np.bool_], kernel: int) -> NDArray[np.float16]:
    """Residual map (S, H, W), zero outside of ``mask``, then median filtered."""
    return median_filter(np.where(mask, residual, np.float16(0)), kernel)


def segment(
    scores: NDArray[np.float16], threshold: float, minimum_component_voxels: int, rule: ComponentRule = AS_PUBLISHED
) -> NDArray[np.bool_]:
    """Voxels of the anomaly map (S, H, W) strictly above ``threshold``, without small components.

    The threshold is compared exactly, also where it is no float16 number. Raises ``ValueError`` below 0.
    """
    above = scores.view(np.uint16) > threshold_bits(threshold)
    return remove_small_components(above, minimum_component_voxels, rule)


def remove_small_components(
    segmentation: NDArray[np.bool_], minimum_voxels: int, rule: ComponentRule = AS_PUBLISHED
) -> NDArray[np.bool_]:
    """Remove connected components whose size is below ``minimum_voxels``; (S, H, W) -> (S, H, W)."""
    kept = np.zeros(segmentation.shape, bool)
    box = bounding_box(segmentation)
    if box is None:
        return kept
    inside = segmentation[box]
    labels, _ = ndimage.label(inside, rule.structure)
    sizes = np.bincount(labels.ravel())
    keep = sizes >= minimum_voxels
    keep[0] = False
    hollow = np.flatnonzero(~keep & (sizes >= SMALLEST_SHELL))
    if rule.size == "filled" and hollow[hollow > 0].size:
        _keep_filled(labels, hollow[hollow > 0], minimum_voxels, keep)
    kept[box] = keep[labels]
    return kept


def _keep_filled(
    labels: NDArray[np.int32], candidates: NDArray[np.int64], minimum_voxels: int, keep: NDArray[np.bool_]
) -> None:
    boxes = ndimage.find_objects(labels)
    for label in candidates:
        component = labels[boxes[label - 1]] == label
        filled = ndimage.binary_fill_holes(component, _TOUCHING)
        keep[label] = filled.sum() >= minimum_voxels


def bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, slice, slice] | None:
    """Smallest box that holds every true voxel of (S, H, W); none if there is none."""
    slices = np.flatnonzero(mask.any((1, 2)))
    if not slices.size:
        return None
    flat = np.asarray(mask[slices[0] : slices[-1] + 1].any(axis=0))
    rows, columns = np.flatnonzero(flat.any(axis=1)), np.flatnonzero(flat.any(axis=0))
    return (
        slice(int(slices[0]), int(slices[-1]) + 1),
        slice(int(rows[0]), int(rows[-1]) + 1),
        slice(int(columns[0]), int(columns[-1]) + 1),
    )
