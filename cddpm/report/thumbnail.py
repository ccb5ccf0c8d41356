"""A scan as small pictures: three planes through the brain's middle, or the lesion's largest slices, all at one scale.

A row of an axial, a coronal and a sagittal plane as radiologists see them (the patient's right on the left); the brain's outline
and the lesion are a second picture over the first, so that a page can take them away.
"""

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from cddpm.data.geometry import reorient, reorient_sizes
from cddpm.data.prepare import background_of
from cddpm.data.volume import Volume, axis_codes

FIELD_MM = 210.0
"""Side of a plane around the brain's middle, the same for all scans: a brain of a wrong size looks it."""
PIXELS = 128
QUALITY = 55
OUTLINE, LESION, EDGE = 1, 2, 3
_COLOURS = ((0, 0, 0, 0), (64, 200, 255, 255), (255, 70, 60, 90), (255, 70, 60, 255))
"""RGBA of nothing, the brain's outline, a lesion's inside and its edge."""
_PLANES = ((2, 1, 0), (1, 2, 0), (0, 2, 1))
"""Axis that a plane lies across, and those of its rows and columns: axial, coronal, sagittal."""


@dataclass(frozen=True)
class Thumbnail:
    """Two pictures of ``PIXELS`` x 3 ``PIXELS``, as base64: the scan (WebP, grey) and its marks (PNG, on nothing)."""

    scan: str
    marks: str


def thumbnail(image: Volume, mask: Volume, segmentation: Volume | None) -> Thumbnail:
    """The pictures of a scan; mask (with a voxel at least) and segmentation lie on its grid."""
    codes = axis_codes(image.affine)
    grey, inside = reorient(image.data, codes, "LPS"), reorient(mask.data, codes, "LPS") > 0
    lesion = None if segmentation is None else reorient(segmentation.data, codes, "LPS") == 1
    sizes = reorient_sizes(image.voxel_size_mm, codes, "LPS")
    (box,) = ndimage.find_objects(inside.astype(np.int8))
    middle = [(side.start + side.stop - 1) / 2 for side in box]
    at = [_largest(lesion, axis, middle[axis]) for axis in range(3)]
    low, high = np.percentile(grey[inside], (1, 99))
    low = min(float(low), float(background_of(grey, inside)))
    shades, marks = [], []
    for axes in _PLANES:
        view = _View(axes, at[axes[0]], middle, sizes)
        shades.append(np.clip((view.of(grey, 1) - low) / max(float(high) - low, 1e-9), 0, 1))
        marks.append(_marks(view.of(inside, 0) > 0, None if lesion is None else view.of(lesion, 0) > 0))
    return Thumbnail(_webp(np.concatenate(shades, axis=1)), _png(np.concatenate(marks, axis=1)))


def _largest(lesion: NDArray[np.bool_] | None, axis: int, otherwise: float) -> int:
    """The slice across ``axis`` with most lesion, or the middle one."""
    if lesion is None or not lesion.any():
        return round(otherwise)
    return int(np.count_nonzero(lesion, axis=tuple(a for a in range(3) if a != axis)).argmax())


@dataclass(frozen=True)
class _View:
    """One plane through a volume (LPS). Anterior or superior is up, the patient's right or front is left."""

    axes: tuple[int, int, int]
    """Across the plane, along its rows' order, along its columns'."""
    index: int
    middle: list[float]
    sizes: tuple[float, float, float]

    def of(self, array: NDArray[Any], order: int) -> NDArray[np.float32]:
        """(PIXELS, PIXELS): what of ``array`` lies in the plane; the least of it beyond its end."""
        across, down, along = self.axes
        flat = np.take(array, self.index, across).astype(np.float32)
        flat = flat.T if down > along else flat  # rows first
        steps = [FIELD_MM / PIXELS / self.sizes[axis] for axis in (down, along)]
        steps[0] *= -1 if down == 2 else 1
        starts = [self.middle[axis] - step * (PIXELS - 1) / 2 for axis, step in zip((down, along), steps, strict=True)]
        least = float(flat.min())
        seen = ndimage.affine_transform(flat, np.array(steps), starts, (PIXELS, PIXELS), order=order, cval=least)
        return np.asarray(seen, np.float32)


def _marks(brain: NDArray[np.bool_], lesion: NDArray[np.bool_] | None) -> NDArray[np.uint8]:
    marks = OUTLINE * (brain & ~ndimage.binary_erosion(brain)).astype(np.uint8)
    if lesion is not None:
        marks[lesion] = LESION
        marks[lesion & ~ndimage.binary_erosion(lesion)] = EDGE
    return marks


def _webp(shades: NDArray[np.float32]) -> str:
    picture = Image.fromarray(np.rint(255 * shades).astype(np.uint8), "L")
    return _kept(picture, "WEBP", quality=QUALITY, method=4)


def _png(marks: NDArray[np.uint8]) -> str:
    picture = Image.fromarray(marks, "P")
    picture.putpalette([part for colour in _COLOURS for part in colour[:3]])
    return _kept(picture, "PNG", transparency=bytes(colour[3] for colour in _COLOURS), optimize=True, bits=2)


def _kept(picture: Image.Image, form: str, **how: object) -> str:
    stream = io.BytesIO()
    picture.save(stream, form, **how)
    return base64.b64encode(stream.getvalue()).decode()
