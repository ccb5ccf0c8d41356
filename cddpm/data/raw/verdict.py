"""What is measured of a prepared head, and what is suspicious of it: no sign is no proof, and no sign stops anybody."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cddpm.data.brain import CONTRAST_MARGIN, USUAL_BRAIN_ML, brain_ml, mask_doubts, rim_contrast, voxel_ml
from cddpm.data.raw.head import Grid, Head
from cddpm.data.volume import Volume, voxel_size_mm

_SIGNS = {"t1": -1, "t2": 1}
"""Whether the fluid and grey matter near the brain's surface are darker or brighter than its depth."""


CLASSICAL = (
    "the brain mask is of thresholds (extractor classical), which may cut brain off or leave skull; look at it, or take HD-BET "
    "or SynthStrip"
)
THIN_MM = 2.0
"""Scans of finer voxels are looked at in every second one, or more: signs are none of single voxels."""


def told(notes: Iterable[str], steps: Iterable[Mapping[str, Any]]) -> list[str]:
    """What reading mended (``notes``), lesions that changed, and a mask by thresholds: nobody looks for these in figures.

    ``steps``: as the manifest has them.
    """
    found = list(notes)
    for step in steps:
        figures = step["figures"]
        if figures.get("lesion_warning"):
            found.append(figures["lesion_warning"])
        if figures.get("extraction") == "classical":
            found.append(CLASSICAL)
    return found


def verdict(head: Head) -> tuple[dict[str, Any], list[str]]:
    """Figures of a prepared head as plain JSON data, and what is suspicious of it, one sentence each.

    Suspicious are a mask that does not fit, a brain of an odd size, and scans whose contrast is that of another modality.
    """
    assert head.mask is not None
    mask, thin = _volume(head.mask), _volume(_thinned(head.mask))
    contrasts, found = {}, [*_size(mask)]
    for modality, grid in head.images.items():
        image = _volume(_thinned(grid))
        contrasts[modality] = rim_contrast(image, thin)
        found += [f"{modality}: {doubt}" for doubt in mask_doubts(image, thin)]
    found += _odd_contrasts(contrasts)
    lesion = None if head.segmentation is None else int(np.count_nonzero(head.segmentation.data))
    figures = {
        "shape": list(head.reference.data.shape),
        "voxel_size_mm": [round(size, 4) for size in mask.voxel_size_mm],
        "brain_ml": round(brain_ml(mask), 2),
        "lesion_voxels": lesion,
        "lesion_ml": None if lesion is None else round(lesion * voxel_ml(mask), 3),
        "rim_contrast": {name: None if one is None else round(one, 4) for name, one in contrasts.items()},
    }
    return figures, found


def _size(mask: Volume) -> Iterator[str]:
    size, (low, high) = brain_ml(mask), USUAL_BRAIN_ML
    if not low <= size <= high:
        yield f"the brain mask holds {size:.0f} ml; a whole brain has {low:.0f} to {high:.0f}"


def _odd_contrasts(contrasts: Mapping[str, float | None]) -> Iterator[str]:
    odd = [
        modality
        for modality, contrast in contrasts.items()
        if contrast is not None and contrast * _SIGNS.get(modality, 0) < -CONTRAST_MARGIN
    ]
    if set(odd) == set(_SIGNS):
        yield "t1 and t2 are probably swapped: the brain's surface is brighter than its depth in t1, darker in t2"
    for modality in odd if len(odd) == 1 else ():
        looks = "brighter" if modality == "t1" else "darker"
        yield f"{modality}: the brain's surface is {looks} than its depth, which is unusual; is it another modality?"


def _thinned(grid: Grid) -> Grid:
    steps = [max(1, int(THIN_MM / size)) for size in voxel_size_mm(grid.affine)]
    data = grid.data[tuple(slice(step // 2, None, step) for step in steps)]
    scale = np.diag([*steps, 1.0])
    scale[:3, 3] = [step // 2 for step in steps]
    return Grid(np.ascontiguousarray(data), grid.affine @ scale)


def _volume(grid: Grid) -> Volume:
    return Volume(grid.data, grid.affine, Path("scan"))
