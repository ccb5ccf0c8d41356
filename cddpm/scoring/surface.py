"""Distance in mm between the surfaces of a prediction and the truth.

The surface of a mask are its voxels with a face neighbour outside of it. From every surface voxel the distance to the
nearest one of the other mask is taken; the Hausdorff distance is the largest of these in both directions, and HD95 the
larger of the two directions' 95th percentiles (MONAI's definition, as in the BraTS challenge).
"""

import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cddpm.scoring.postprocess import bounding_box


def hausdorff_mm(
    prediction: NDArray[np.bool_], truth: NDArray[np.bool_], voxel_size_mm: Sequence[float]
) -> float | None:
    """Hausdorff distance of two masks (S, H, W) with voxels of ``voxel_size_mm`` along (S, H, W).

    None if either mask is empty: there is no distance to nothing. A mean over volumes is then one over the volumes where
    something was predicted; tell their number beside it. Raises ``ValueError`` if the shapes differ.
    """
    return _distance_mm(prediction, truth, voxel_size_mm, None)


def hd95_mm(prediction: NDArray[np.bool_], truth: NDArray[np.bool_], voxel_size_mm: Sequence[float]) -> float | None:
    """95th percentile Hausdorff distance; the rest is as in ``hausdorff_mm``."""
    return _distance_mm(prediction, truth, voxel_size_mm, 95.0)


def _distance_mm(
    prediction: NDArray[np.bool_], truth: NDArray[np.bool_], voxel_size_mm: Sequence[float], percentile: float | None
) -> float | None:
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction {prediction.shape} and truth {truth.shape} differ in shape")
    box = bounding_box(prediction | truth)
    if box is None or not prediction.any() or not truth.any():
        return None
    one, other = (mask[box][None, None] for mask in (prediction, truth))
    spacing = [float(size) for size in voxel_size_mm]
    distance = _monai()(one, other, include_background=True, percentile=percentile, spacing=spacing)
    return float(distance[0, 0])


@cache
def _monai() -> Callable[..., Any]:
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance  # takes seconds to import

    # MONAI 1.6 warns of an argument that it gives itself
    warnings.filterwarnings("ignore", ".*always_return_as_numpy", FutureWarning)
    return compute_hausdorff_distance
