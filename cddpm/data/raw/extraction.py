"""The classical fallback for a brain mask: thresholds and morphology, where no mask is given and no network at hand.

The bias field is taken out roughly. Then at 3 mm every threshold and every radius of erosion is tried: what is brighter,
eroded until the brain is the largest piece, grown back, closed and filled. A piece that lies at the head's surface has leaked
through the skull. Of the others the one that is most like an ellipsoid is taken, which a brain without bites and handles is;
of nearly as good and large ones the smallest, which has least of the meninges. That threshold and radius are applied once
more at 2 mm, and a sheet of bright fluid around it is taken off. Contrast has no other say but that bone is dark, so T1, T2
and FLAIR are alike. With a template, its mask, registered, cuts off what is far outside and fills in what is deep inside.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from cddpm.data.raw.bias import bias_field, otsu
from cddpm.data.raw.head import Figures, Grid
from cddpm.data.raw.registration import COARSE, MIDDLE, Scene, match, overlap
from cddpm.data.raw.resampling import around, inverse, lattice_of, linear, mask_at, moved, voxel_ml, voxel_sizes
from cddpm.errors import DataError

Mask = npt.NDArray[np.bool_]
SEARCH_MM, FINAL_MM = 3.0, 2.0
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
"""Of the median of what is brighter than Otsu's threshold."""
RADII_MM = (2.0, 3.0, 4.5, 6.0, 8.0)
CLOSING_MM = 9.0
PLAUSIBLE_ML = (600.0, 2700.0)
CORE = 0.1
"""What erosion leaves of a brain is more than this share of the smallest one."""
STRIPPED_ML = 2300.0
"""A head with less in it has no skull."""
SPECK = 0.01
"""A bright piece with no more than this share of all that is bright is no part of the head."""
SURFACE_MM, LEAKED = 6.0, 0.02
"""A piece with more than this share of it nearer than that to the head's surface is no brain alone."""
NEARLY = 0.007
"""Ellipsoids that fit less well by this fit as well."""
WHOLE = 0.85
"""A piece with less than this share of the largest good one lacks a part; meninges and fluid are the rest of it at most."""
RIM_MM, RIM_LEVEL, RIM_SHARE = 4.0, 1.3, 0.08
"""A sheet thinner than twice that, nearer than that to a piece's surface and brighter than its median by that factor is fluid
where it makes up that share of all that is so near to the surface."""
FAR_MM, DEEP_MM = 5.0, 7.0
"""Beyond the template's brain, and within it, by which the template is believed."""
BELIEVED = 0.9
"""Dice with what thresholds found: a template's brain that agrees less was not brought to the right place."""


@dataclass(frozen=True)
class _Piece:
    inside: Mask
    threshold: float
    radius_mm: float
    likeness: float


def classical(image: Grid, template: Scene | None = None) -> tuple[Grid, Figures]:
    """A brain mask uint8 {0, 1} on the grid of ``image``, and how it was found.

    Raises ``DataError`` when no piece of the head can be told to be its brain.
    """
    coarse = _seen(image, SEARCH_MM)
    bright = otsu(coarse.data)
    head, level = _head(bright), float(np.median(coarse.data[bright]))
    piece = _likeliest(coarse, head, level)
    figures: dict[str, float | int | str | bool | None] = {"extraction": "classical"}
    if piece is not None:
        found = _refined(image, coarse, piece, level)
        figures |= {
            "extraction_threshold": piece.threshold,
            "extraction_radius_mm": piece.radius_mm,
            "extraction_ellipsoid_dice": round(piece.likeness, 4),
        }
    elif np.count_nonzero(head) * voxel_ml(coarse.affine) <= STRIPPED_ML:
        found = Grid(head.astype(np.uint8), coarse.affine)
        figures["extraction_piece"] = "everything, as there is no skull"
    else:
        raise DataError(
            "no brain can be told from the rest of the head by thresholds; give a mask, or name HD-BET or SynthStrip as the "
            "extractor"
        )
    if template is not None and template.brain is not None:
        found, agreement = _with_template(image, found, template)
        figures["extraction_atlas_dice"] = round(agreement, 4)
    return mask_at(found, lattice_of(image)), figures


def _seen(image: Grid, voxel_mm: float) -> Grid:
    """The image with cubic voxels, its bias field taken out roughly."""
    seen = linear(image, around(image, "RAS", voxel_mm))
    data = seen.data - seen.data.min()
    field = bias_field(Grid(data, seen.affine), otsu(data), 6.0, (10, 10, 10))
    return Grid(data / field, seen.affine)


def _head(bright: Mask) -> Mask:
    """All within the outer surface of what is bright, specks left out; open where the field of view ends.

    The scalp may be a shell of its own around a brain that is the larger piece.
    """
    pad = int(np.ceil(9.0 / SEARCH_MM))
    pieces, _ = ndimage.label(bright)
    large = np.bincount(pieces.ravel()) > SPECK * np.count_nonzero(bright)
    large[0] = False
    solid = np.pad(large[pieces], pad)
    closed = _eroded(_dilated(solid, 9.0, SEARCH_MM), 9.0, SEARCH_MM)
    inner = (slice(pad, -pad),) * 3
    return np.asarray(ndimage.binary_fill_holes(closed))[inner]


def _likeliest(coarse: Grid, head: Mask, level: float) -> _Piece | None:
    depth = ndimage.distance_transform_edt(np.pad(head, 1, mode="edge"), sampling=SEARCH_MM)[1:-1, 1:-1, 1:-1]
    low, high = (ml / voxel_ml(coarse.affine) for ml in PLAUSIBLE_ML)
    pieces = []
    for threshold in THRESHOLDS:
        bright = coarse.data > threshold * level
        thickness = ndimage.distance_transform_edt(bright, sampling=SEARCH_MM)
        cores = [(radius, _largest(thickness > radius)) for radius in RADII_MM]
        for radius, core in cores:
            if not CORE * low <= np.count_nonzero(core) <= high:
                continue
            inside = _grown(core, bright, radius, SEARCH_MM)
            size = np.count_nonzero(inside)
            surface = np.count_nonzero(inside & (depth <= SURFACE_MM))
            if low <= size <= high and surface <= LEAKED * size:
                pieces.append(_Piece(inside, threshold, radius, _ellipsoid_dice(inside)))
    if not pieces:
        return None
    best = max(piece.likeness for piece in pieces) - NEARLY
    good = {int(np.count_nonzero(piece.inside)): piece for piece in pieces if piece.likeness >= best}
    return good[min(size for size in good if size >= WHOLE * max(good))]


def _refined(image: Grid, coarse: Grid, piece: _Piece, level: float) -> Grid:
    """The piece found once more with finer voxels, near where it was."""
    fine = _seen(image, FINAL_MM)
    found = mask_at(Grid(piece.inside.astype(np.uint8), coarse.affine), lattice_of(fine)).data > 0
    bright = (fine.data > piece.threshold * level) & _dilated(found, SEARCH_MM, FINAL_MM)
    core = _eroded(bright, piece.radius_mm, FINAL_MM) | bright & _eroded(found, SEARCH_MM, FINAL_MM)
    if not core.any():
        return Grid(piece.inside.astype(np.uint8), coarse.affine)
    inside = _without_rim(fine.data, _grown(core, bright, piece.radius_mm, FINAL_MM))
    return Grid(inside.astype(np.uint8), fine.affine)


def _without_rim(image: npt.NDArray[np.float32], inside: Mask) -> Mask:
    """``inside`` without a thin sheet around the brain that is brighter than it, which is fluid on T2.

    What is bright and thick, as a lesion that comes to the surface, stays.
    """
    outer = inside & ~_eroded(inside, RIM_MM, FINAL_MM)
    bright = inside & (image > RIM_LEVEL * np.median(image[inside]))
    rim = outer & bright & ~_dilated(_eroded(bright, RIM_MM, FINAL_MM), RIM_MM, FINAL_MM)
    if np.count_nonzero(rim) < RIM_SHARE * np.count_nonzero(outer):
        return inside
    kept = inside & ~rim
    core = _largest(_eroded(kept, FINAL_MM, FINAL_MM))
    return _grown(core, kept, FINAL_MM, FINAL_MM) if core.any() else inside


def _grown(core: Mask, bright: Mask, radius_mm: float, voxel_mm: float) -> Mask:
    """A piece that erosion left, grown back into ``bright``, closed and filled."""
    (box,) = ndimage.find_objects(core.astype(np.uint8))
    room = int(np.ceil((radius_mm + CLOSING_MM) / voxel_mm)) + 2
    near = tuple(slice(max(0, part.start - room), part.stop + room) for part in box)
    grown = _dilated(core[near], radius_mm + voxel_mm / 3, voxel_mm) & bright[near]
    closed = _eroded(_dilated(grown, CLOSING_MM, voxel_mm), CLOSING_MM, voxel_mm)
    result = np.zeros_like(core)
    result[near] = _filled(closed)
    return result


def _filled(inside: Mask) -> Mask:
    """Without holes, and without such as are open at one end alone: deep nuclei that the brain stem leads to."""
    result = np.asarray(ndimage.binary_fill_holes(inside))
    for axis in range(3):
        for index in range(result.shape[axis]):
            plane = (slice(None),) * axis + (index,)
            result[plane] = ndimage.binary_fill_holes(result[plane])
    return result


def _with_template(image: Grid, found: Grid, template: Scene) -> tuple[Grid, float]:
    """``found`` where the template's brain is near, all that is deep inside of that; Dice of the two before.

    ``found`` as it is where they agree less than ``BELIEVED``.
    """
    assert template.brain is not None
    motion = match(template, Scene(image, found), "affine", (COARSE, MIDDLE)).motion
    agreement = overlap(template.brain, found, motion)
    if agreement < BELIEVED:
        return found, agreement
    carried = mask_at(moved(template.brain, inverse(motion)), lattice_of(found)).data > 0
    voxel_mm = float(voxel_sizes(found.affine)[0])
    brain = (found.data > 0) & _dilated(carried, FAR_MM, voxel_mm) | _eroded(carried, DEEP_MM, voxel_mm)
    brain = _largest(np.asarray(ndimage.binary_fill_holes(brain)))
    return Grid(brain.astype(np.uint8), found.affine), agreement


def _ellipsoid_dice(inside: Mask) -> float:
    """Dice of a shape and the ellipsoid that has its moments."""
    points = np.argwhere(inside)
    middle = points.mean(0)
    root = np.linalg.cholesky(np.cov(points.T) * 5 + 1e-6 * np.eye(3))
    away = np.indices(inside.shape).reshape(3, -1) - middle[:, None]
    within = (np.square(np.linalg.solve(root, away)).sum(0) <= 1).reshape(inside.shape)
    return 2 * float(np.count_nonzero(within & inside)) / float(np.count_nonzero(within) + len(points))


def _largest(inside: Mask) -> Mask:
    labels, count = ndimage.label(inside)
    if not count:
        return inside
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(labels == np.argmax(sizes))


def _dilated(inside: Mask, radius_mm: float, voxel_mm: float) -> Mask:
    if not inside.any():
        return inside
    return np.asarray(ndimage.distance_transform_edt(~inside, sampling=voxel_mm) <= radius_mm)


def _eroded(inside: Mask, radius_mm: float, voxel_mm: float) -> Mask:
    return np.asarray(ndimage.distance_transform_edt(inside, sampling=voxel_mm) > radius_mm)
