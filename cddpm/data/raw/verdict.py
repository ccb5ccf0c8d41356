"""What is measured of a prepared head, and what is suspicious of it: no sign is no proof, and no sign stops anybody."""

from pathlib import Path
from typing import Any

import numpy as np

from cddpm.data.brain import CONTRAST_MARGIN, USUAL_BRAIN_ML, brain_ml, mask_doubts, rim_contrast, voxel_ml
from cddpm.data.raw.head import Grid, Head
from cddpm.data.volume import Volume

_SIGNS = {"t1": -1, "t2": 1}
"""Whether the fluid and grey matter near the brain's surface are darker or brighter than its depth."""


def suspicions(head: Head) -> list[str]:
    """One sentence each: of the mask, of its size, and of scans whose contrast is that of another modality."""
    assert head.mask is not None
    mask = _volume(head.mask)
    found = []
    size, (low, high) = brain_ml(mask), USUAL_BRAIN_ML
    if not low <= size <= high:
        found.append(f"the brain mask holds {size:.0f} ml; a whole brain has {low:.0f} to {high:.0f}")
    odd = []
    for modality, grid in head.images.items():
        found += [f"{modality}: {doubt}" for doubt in mask_doubts(_volume(grid), mask)]
        contrast, sign = rim_contrast(_volume(grid), mask), _SIGNS.get(modality)
        if sign is not None and contrast is not None and sign * contrast < -CONTRAST_MARGIN:
            odd.append(modality)
    if set(odd) == set(_SIGNS):
        found.append(
            "t1 and t2 are probably swapped: the brain's surface is brighter than its depth in t1, darker in t2"
        )
    for modality in odd if len(odd) == 1 else ():
        looks = "brighter" if modality == "t1" else "darker"
        found.append(
            f"{modality}: the brain's surface is {looks} than its depth, which is unusual; is it another modality?"
        )
    return found


def figures_of(head: Head) -> dict[str, Any]:
    """Of the result: shape, voxel size, volumes, and the contrast of surface and depth of each image."""
    assert head.mask is not None
    mask = _volume(head.mask)
    contrasts = {modality: rim_contrast(_volume(grid), mask) for modality, grid in head.images.items()}
    lesion = None if head.segmentation is None else int(np.count_nonzero(head.segmentation.data))
    return {
        "shape": list(head.reference.data.shape),
        "voxel_size_mm": [round(size, 4) for size in mask.voxel_size_mm],
        "brain_ml": round(brain_ml(mask), 2),
        "lesion_voxels": lesion,
        "lesion_ml": None if lesion is None else round(lesion * voxel_ml(mask), 3),
        "rim_contrast": {name: None if one is None else round(one, 4) for name, one in contrasts.items()},
    }


def _volume(grid: Grid) -> Volume:
    return Volume(grid.data, grid.affine, Path("scan"))
