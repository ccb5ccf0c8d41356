"""What is suspicious about a scan and its brain mask, though both can be used: one list for training scans and for others.

``cddpm predict`` tells it of every scan it looks at, ``cddpm data check``, ``cddpm data build`` and every sweep of every scan
of training, validation and test: who trains on what a prediction would warn of teaches it to the model.
"""

import numpy as np

from cddpm.data import brain
from cddpm.data.geometry import Geometry, field_of_view
from cddpm.data.truth import CUT_FRACTION
from cddpm.data.volume import Volume


def suspicions(image: Volume, mask: Volume, geometry: Geometry, modality: str) -> list[str]:
    """One sentence each, of a scan, its brain mask (given or estimated) and the way to the working grid.

    A doubtful mask comes first, since it explains the others; then what reading had to mend (``Volume.notes``).
    """
    doubts = brain.mask_doubts(image, mask)
    return list(dict.fromkeys([*doubts, *mask.notes, *image.notes, *_others(image, mask, geometry, modality)]))


def signs(image: Volume, mask: Volume, geometry: Geometry, modality: str) -> list[str]:
    """``suspicions`` without what reading mended, which belongs to one file."""
    return [*brain.mask_doubts(image, mask), *_others(image, mask, geometry, modality)]


def _others(image: Volume, mask: Volume, geometry: Geometry, modality: str) -> list[str]:
    found = brain.oddities(image, mask, modality)
    inside = mask.data > 0
    cut = 1 - np.count_nonzero(inside & field_of_view(geometry)) / np.count_nonzero(inside)
    if geometry.voxel_step != (1.0, 1.0, 1.0):
        there, needed = (
            " x ".join(f"{n:.2f}" for n in sizes) for sizes in (image.voxel_size_mm, geometry.voxel_size_mm)
        )
        found.append(f"voxels of {there} mm were resampled to {needed} mm, those of the model")
    if cut > CUT_FRACTION:
        found.append(f"{cut:.0%} of the brain lies outside of the model's field of view and was not looked at")
    return found
