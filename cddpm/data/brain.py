"""A brain mask for a scan that comes without one, what the mask and the scan say of each other, and what is suspicious of both.

The networks know skull-stripped brains only. In such a scan the brain is whatever is not background; an estimate for a
scan with a skull is a guess, and says so.

``cddpm predict`` tells what is suspicious of every scan it looks at, ``cddpm data check``, ``cddpm data build`` and every sweep
of every scan of training, validation and test: who trains on what a prediction would warn of teaches it to the model.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813
from scipy import ndimage

from cddpm.data.geometry import CUT_FRACTION, Geometry, field_of_view
from cddpm.data.prepare import background_of
from cddpm.data.volume import Volume, VolumeFileError

USUAL_BRAIN_ML = (700.0, 2100.0)
"""Brains of schoolchildren and adults with their fluid, and some margin."""
RIM_MM, DEPTH_MM = 5.0, 12.0
CONTRAST_MARGIN = 0.1
SIGNAL_OUTSIDE = 0.05
FLAT, HALO = 0.002, 0.05
"""Fractions of the signal: how much a background without noise differs from one value, and what is no brain yet."""
FADED, VALLEY, BINS = 0.12, 0.4, 40
"""A halo begins and ends below these fractions of the signal; its end is looked for in so many steps."""


def estimate_mask(image: Volume) -> Volume:
    """A brain mask uint8 {0, 1} on the grid of ``image``, with a note on how it was made.

    Where most of the scan's six faces hold one value (a skull-stripped scan: 0), all voxels of another value count, but for a
    halo of little more, as resampling leaves it; else those above Otsu's threshold (1979). The largest 6-connected
    component of them is kept and its holes are filled. Raises ``VolumeFileError`` if that leaves nothing.
    """
    background = _background(image.data)
    if background is None:
        inside = _above_otsu(image.data)
        how = (
            "Otsu's threshold, as the scan is not skull-stripped (its border is not of one value): suspect it first, and "
            "expect wrong results"
        )
    else:
        inside, how = _differing(image.data, background)
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


def mask_doubts(image: Volume, mask: Volume) -> list[str]:
    """Signs that the brain mask is not that of the scan's brain; each as one sentence. They explain all other signs."""
    empty = dark_surface(image, mask)
    if empty <= 0.5:
        return []
    return [
        f"{empty:.0%} of the brain mask's surface is as dark as the background: the mask reaches beyond the brain; suspect it "
        "first, and give one that fits"
    ]


def dark_surface(image: Volume, mask: Volume) -> float:
    """Share of the mask's surface that is as dark as the background."""
    brain = mask.data > 0
    above = np.abs(image.data - background_of(image.data, brain))
    surface = brain & ~ndimage.binary_erosion(brain)
    return float((above[surface] < HALO * np.median(above[brain])).mean())


def _background(data: npt.NDArray[np.float32]) -> float | None:
    """What more than half of the six faces hold, or nearly hold: a halo of resampling fades, but does not end."""
    faces = np.concatenate([np.take(data, end, axis).ravel() for axis in range(3) for end in (0, -1)])
    middle = float(np.median(faces))
    near = np.abs(faces - middle) <= FLAT * _signal(np.abs(data - middle))
    return middle if np.count_nonzero(near) > 0.5 * faces.size else None


def _differing(data: npt.NDArray[np.float32], background: float) -> tuple[npt.NDArray[np.bool_], str]:
    """Voxels of a stripped scan's brain, and in words which they are.

    Where a halo fades into the background the histogram has a valley before the brain; that is where the two part.
    """
    above = np.abs(data - background)
    signal = _signal(above)
    low = np.unique(above[(above > 0) & (above < VALLEY * signal)])
    step = max(
        float(np.diff(low, prepend=0).min()) if low.size else 0.0, VALLEY * signal / BINS
    )  # whole numbers have gaps
    edges = step * np.arange(0.5, VALLEY * signal / step) if step else np.empty(0)
    everything = above > 0, f"all voxels that are not {background:g}"
    if edges.size < 3 or not low.size or low[0] > FADED * signal:
        return everything
    counts, _ = np.histogram(above[above > 0], edges)
    smooth = np.convolve(np.pad(counts, 1, mode="edge"), np.ones(3), "valid")
    first = int(np.argmax(counts > 0))
    lowest = float(edges[first + int(np.argmin(smooth[first:]))])
    inside = above > lowest
    if np.count_nonzero(above) <= 1.01 * np.count_nonzero(inside):
        return everything
    shed = np.count_nonzero(above) / np.count_nonzero(inside) - 1
    return inside, (
        f"all voxels that differ from {background:g} by more than {lowest / signal:.0%} of the signal, as a halo surrounds them "
        f"({shed:.0%} of their number; was the scan resampled?): suspect it first"
    )


def _signal(above: npt.NDArray[np.float32]) -> float:
    """Median of what is bright in a scan without its background."""
    bright = above[_above_otsu(above)]
    return float(np.median(bright)) if bright.size else 0.0


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


def signal_outside(image: Volume, mask: Volume) -> float:
    """Voxels outside of the mask that are brighter than a tenth of the brain, over the mask's voxels."""
    brain = mask.data > 0
    floor = np.percentile(image.data[brain], 10)
    return float(np.count_nonzero((image.data > floor) & ~brain) / np.count_nonzero(brain))


def _signal_oddity(image: Volume, mask: Volume) -> str | None:
    outside = signal_outside(image, mask)
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


def suspicions(image: Volume, mask: Volume, geometry: Geometry, modality: str) -> list[str]:
    """One sentence each, of a scan, its brain mask (given or estimated) and the way to the working grid.

    A doubtful mask comes first, since it explains the others; then what reading had to mend (``Volume.notes``).
    """
    doubts = mask_doubts(image, mask)
    return list(dict.fromkeys([*doubts, *mask.notes, *image.notes, *_others(image, mask, geometry, modality)]))


def signs(image: Volume, mask: Volume, geometry: Geometry, modality: str) -> list[str]:
    """``suspicions`` without what reading mended, which belongs to one file."""
    return [*mask_doubts(image, mask), *_others(image, mask, geometry, modality)]


def cut_fraction(mask: Volume, geometry: Geometry) -> float:
    """Share of the brain that lies outside of the field of view."""
    inside = mask.data > 0
    return float(1 - np.count_nonzero(inside & field_of_view(geometry)) / np.count_nonzero(inside))


def unseen_ml(inside: npt.NDArray[np.bool_], image: Volume, geometry: Geometry) -> float:
    """Volume of what is ``inside`` (X, Y, Z of ``image``) and outside of the field of view."""
    return float(np.count_nonzero(inside & ~field_of_view(geometry))) * voxel_ml(image)


def _others(image: Volume, mask: Volume, geometry: Geometry, modality: str) -> list[str]:
    found = oddities(image, mask, modality)
    cut = cut_fraction(mask, geometry)
    if geometry.voxel_step != (1.0, 1.0, 1.0):
        there, needed = (
            " x ".join(f"{n:.2f}" for n in sizes) for sizes in (image.voxel_size_mm, geometry.voxel_size_mm)
        )
        found.append(f"voxels of {there} mm were resampled to {needed} mm, those of the model")
    if cut > CUT_FRACTION:
        found.append(f"{cut:.0%} of the brain lies outside of the model's field of view and was not looked at")
    return found
