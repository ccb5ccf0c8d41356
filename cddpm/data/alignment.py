"""Whether a mask or a segmentation lies on its scan's voxels, and what can be done if it does not."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cddpm.data.volume import Volume, VolumeFileError, axis_codes, require_same_grid


def aligned(image: Volume, label: Volume) -> Volume:
    """``label`` on the grid of ``image``: as it is, or with its axes turned to those of ``image`` and a note.

    Turning moves no voxel in space. Headers without qform and sform tell no orientation, so nothing is turned by them.
    Raises ``VolumeFileError`` when the two lie on different grids.
    """
    try:
        require_same_grid(image, label)
    except VolumeFileError:
        turned = _turned(image, label) if _oriented(image) and _oriented(label) else None
        if turned is None:
            raise
        return turned
    return label


def require_finite(volume: Volume, mask: Volume) -> None:
    """Raises ``VolumeFileError`` when voxels that were NaN or infinite in the file of ``volume`` lie in the brain."""
    bad = 0 if volume.blank is None else int(np.count_nonzero(volume.blank & (mask.data > 0)))
    if bad:
        found = f"{bad} voxels inside of the brain are NaN or infinite"
        raise VolumeFileError(
            str(volume.path), "non-finite", found, "finite numbers are needed there; fill or export again"
        )


def _oriented(volume: Volume) -> bool:
    return volume.header is None or bool(int(volume.header["sform_code"]) or int(volume.header["qform_code"]))


def _turned(image: Volume, label: Volume) -> Volume | None:
    """``label`` with its axes along those of ``image``; None if that does not bring it to the grid of ``image``."""
    along = np.rint(np.linalg.solve(image.affine[:3, :3], label.affine[:3, :3])).astype(int)
    if (
        sorted(np.abs(along).ravel()) != [0] * 6 + [1] * 3
        or not np.abs(along).any(0).all()
        or not np.abs(along).any(1).all()
    ):
        return None
    axes, flipped = np.abs(along).argmax(1), along.sum(1) < 0
    back = np.zeros((4, 4))
    back[3, 3] = 1
    for new, (old, flip) in enumerate(zip(axes, flipped, strict=True)):
        back[old, new], back[old, 3] = (-1, label.data.shape[old] - 1) if flip else (1, 0)

    def turn(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.ascontiguousarray(np.flip(array.transpose(axes), tuple(np.flatnonzero(flipped).tolist())))

    there, here = axis_codes(label.affine), axis_codes(image.affine)
    note = f"{label.path.name} is stored as {there}, its scan as {here}; turned to the scan's axes"
    blank = None if label.blank is None else turn(label.blank)
    turned = replace(
        label, data=turn(label.data), affine=label.affine @ back, notes=(*label.notes, note), header=None, blank=blank
    )
    try:
        require_same_grid(image, turned)
    except VolumeFileError:
        return None
    return turned
