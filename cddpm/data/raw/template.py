"""The head or brain that others are registered to, from the user's files."""

import functools
from pathlib import Path

import numpy as np
from scipy import ndimage

from cddpm.data.raw.extraction import STRIPPED_ML
from cddpm.data.raw.head import Grid
from cddpm.data.raw.registration import Scene
from cddpm.data.raw.resampling import voxel_ml


@functools.lru_cache(maxsize=2)
def template(image: Path, mask: Path | None) -> Scene:
    """The template and its brain: of ``mask``, else all that is not 0 if that is no more than a brain.

    Read once in a process. Raises ``VolumeFileError`` when a file cannot be used or the two lie on different grids.
    """
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
