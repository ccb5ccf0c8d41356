"""The head or brain that others are registered to, from the user's files."""

import functools
from pathlib import Path

import numpy as np
from scipy import ndimage

from cddpm.data.raw.extraction import STRIPPED_ML
from cddpm.data.raw.head import Grid
from cddpm.data.raw.registration import Scene
from cddpm.data.raw.resampling import voxel_ml


def template(image: Path, mask: Path | None) -> Scene:
    """The template and its brain: of ``mask``, else all that is not 0 if that is no more than a brain.

    Read once in a process, unless the files change. Raises ``VolumeFileError`` when one cannot be used or the two lie on
    different grids.
    """
    return _read(image, mask, _stamps(image, mask))


def _stamps(*files: Path | None) -> tuple[tuple[int, int], ...]:
    """When each file that is there was written, and its size: a missing one is told by who reads it."""
    there = [file.stat() for file in files if file is not None and file.is_file()]
    return tuple((found.st_mtime_ns, found.st_size) for found in there)


@functools.lru_cache(maxsize=2)
def _read(image: Path, mask: Path | None, stamps: tuple[tuple[int, int], ...]) -> Scene:
    from cddpm.data.prepare import aligned
    from cddpm.data.volume import read_image, read_mask

    volume = read_image(image)
    grid = Grid(volume.data, volume.affine)
    if mask is not None:
        return Scene(grid, Grid(aligned(volume, read_mask(mask)).data, volume.affine))
    inside = ndimage.binary_fill_holes(volume.data != 0)
    if np.count_nonzero(inside) * voxel_ml(volume.affine) > STRIPPED_ML:
        return Scene(grid)
    return Scene(grid, Grid(inside.astype(np.uint8), volume.affine))
