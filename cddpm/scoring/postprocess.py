"""From a residual map to an anomaly map, and from an anomaly map to a segmentation."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cddpm.scoring.median import median_filter
from cddpm.scoring.operating_point import threshold_bits

_TOUCHING = np.ones((3, 3, 3), bool)
_SMALLEST_SHELL = 26
"""Voxels of the smallest component that can enclose a hole: all neighbours of one voxel."""


def anomaly_map(residual: NDArray[np.float16], mask: NDArray[np.bool_], kernel: int) -> NDArray[np.float16]:
    """Residual map (S, H, W), zero outside of ``mask``, then median filtered."""
    return median_filter(np.where(mask, residual, np.float16(0)), kernel)


def segment(scores: NDArray[np.float16], threshold: float, minimum_component_voxels: int) -> NDArray[np.bool_]:
    """Voxels of the anomaly map (S, H, W) strictly above ``threshold``, without small components.

    The threshold is compared exactly, also where it is no float16 number. Raises ``ValueError`` below 0.
    """
    above = scores.view(np.uint16) > threshold_bits(threshold)
    return remove_small_components(above, minimum_component_voxels)


def remove_small_components(segmentation: NDArray[np.bool_], minimum_voxels: int) -> NDArray[np.bool_]:
    """Remove 26-connected components whose volume, holes filled, is below ``minimum_voxels``; (S, H, W) -> (S, H, W)."""
    kept = np.zeros(segmentation.shape, bool)
    box = bounding_box(segmentation)
    if box is None:
        return kept
    inside = segmentation[box]
    labels, _ = ndimage.label(inside, _TOUCHING)
    sizes = np.bincount(labels.ravel())
    keep = sizes >= minimum_voxels
    keep[0] = False
    hollow = np.flatnonzero(~keep & (sizes >= _SMALLEST_SHELL))
    if hollow[hollow > 0].size:
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
