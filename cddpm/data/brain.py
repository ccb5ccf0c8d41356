"""A brain mask for a scan that comes without one, and what the mask and the scan say of each other.

The networks know skull-stripped brains only. In such a scan the brain is whatever is not background; an estimate for a
scan with a skull is a guess, and says so.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813
from scipy import ndimage

from cddpm.data.volume import Volume, VolumeFileError

USUAL_BRAIN_ML = (700.0, 2100.0)
"""Brains of schoolchildren and adults with their fluid, and some margin."""
RIM_MM, DEPTH_MM = 5.0, 12.0
CONTRAST_MARGIN = 0.1
SIGNAL_OUTSIDE = 0.05


def estimate_mask(image: Volume) -> Volume:
    """A brain mask uint8 {0, 1} on the grid of ``image``, with a note on how it was made.

    Where most of the scan's six faces hold one value (a skull-stripped scan: 0), all voxels of another value count, else
    those above Otsu's threshold (1979). The largest 6-connected component of them is kept and its holes are filled.
    Raises ``VolumeFileError`` if that leaves nothing.
    """
    background = _background(image.data)
    if background is None:
        inside = _above_otsu(image.data)
        how = (
            "Otsu's threshold, as the scan is not skull-stripped (its border is not of one value): expect wrong results"
        )
    else:
        inside = image.data != background
        how = f"all voxels that are not {background:g}"
    brain = ndimage.binary_fill_holes(_largest(inside))
    if not brain.any():
        raise VolumeFileError(str(image.path), "empty-mask", "no brain can be told from the background", "give a mask")
    note = f"no brain mask given; estimated from {how} (largest component, holes filled)"
    return Volume(brain.astype(np.uint8), image.affine, image.path, (note,), image.header)


def brain_ml(mask: Volume) -> float:
    """Volume of a mask's voxels."""
    return float(np.count_nonzero(mask.data)) * voxel_ml(mask)


def voxel_ml(image: Volume) -> float:
    """Volume of one voxel."""
    return float(abs(np.linalg.det(image.affine[:3, :3]))) / 1000


def oddities(image: Volume, mask: Volume, modality: str) -> list[str]:
    """Simple signs that a scan is none of those that a model for ``modality`` was made from; each as one sentence.

    Size of the brain, signal outside of it, and (T1 and T2 only) whether the fluid and grey matter near its surface are
    darker or brighter than its depth. No sign is no proof.
    """
    signs = [_size_oddity(mask), _signal_oddity(image, mask), _contrast_oddity(image, mask, modality)]
    return [sign for sign in signs if sign]


def _background(data: npt.NDArray[np.float32]) -> float | None:
    faces = np.concatenate([np.take(data, end, axis).ravel() for axis in range(3) for end in (0, -1)])
    values, counts = np.unique(faces, return_counts=True)
    most = int(np.argmax(counts))
    return float(values[most]) if counts[most] > 0.5 * faces.size else None


def _above_otsu(data: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    return sitk.GetArrayFromImage(sitk.OtsuThreshold(sitk.GetImageFromArray(data), 0, 1)) > 0


def _largest(inside: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    labels, _ = ndimage.label(inside)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return (labels == np.argmax(sizes)) & inside


def _size_oddity(mask: Volume) -> str | None:
    size, (low, high) = brain_ml(mask), USUAL_BRAIN_ML
    if low <= size <= high:
        return None
    return f"the brain mask holds {size:.0f} ml; a whole brain has {low:.0f} to {high:.0f} (part of a brain? wrong voxel size?)"


def _signal_oddity(image: Volume, mask: Volume) -> str | None:
    brain = mask.data > 0
    floor = np.percentile(image.data[brain], 10)
    outside = np.count_nonzero((image.data > floor) & ~brain) / np.count_nonzero(brain)
    if outside <= SIGNAL_OUTSIDE:
        return None
    return (
        f"voxels as bright as brain lie outside of the mask ({outside:.0%} of its size); the model knows skull-stripped "
        "scans only: set the scan to 0 there"
    )


def _contrast_oddity(image: Volume, mask: Volume, modality: str) -> str | None:
    sign = {"t1": -1, "t2": 1}.get(modality.lower())
    difference = rim_contrast(image, mask)
    if sign is None or difference is None or sign * difference > -CONTRAST_MARGIN:
        return None
    brighter = "darker" if difference < 0 else "brighter"
    return (
        f"the brain's surface is {brighter} than its depth, which is unusual for {modality.upper()}, the modality that the "
        "model was made from"
    )


def rim_contrast(image: Volume, mask: Volume) -> float | None:
    """Median intensity near the brain's surface minus that of its depth, over the 1st to 99th percentile's range.

    None for a brain too small to have both.
    """
    brain: npt.NDArray[Any] = mask.data > 0
    distance = ndimage.distance_transform_edt(np.pad(brain, 1), sampling=mask.voxel_size_mm)[1:-1, 1:-1, 1:-1]
    rim, deep = brain & (distance <= RIM_MM), distance >= DEPTH_MM
    low, high = np.percentile(image.data[brain], (1, 99))
    if not rim.any() or not deep.any() or high <= low:
        return None
    return float((np.median(image.data[rim]) - np.median(image.data[deep])) / (high - low))
