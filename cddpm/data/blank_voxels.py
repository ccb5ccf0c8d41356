"""Voxels that are NaN or infinite in their file: what they are taken for, and the error where they cannot be."""

from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from cddpm.data.volume_file import fault


def background(data: npt.NDArray[np.float32], blank: npt.NDArray[np.bool_]) -> float:
    """The value of most voxels beside ``blank`` ones; without one 0, if all are brighter, else what is darker than all."""
    values, counts = np.unique(data[ndimage.binary_dilation(blank) & ~blank], return_counts=True)
    if 2 * counts.max() > counts.sum():
        return float(values[counts.argmax()])
    low, middle = float(data[~blank].min()), float(np.median(data[~blank]))
    return 0.0 if low > 0 else low - (middle - low) / 2


def refuse(path: Path, blank: npt.NDArray[np.bool_]) -> NoReturn:
    """Raises ``VolumeFileError`` with the first of them."""
    first = tuple(int(i) for i in np.argwhere(blank)[0])
    found = f"{np.count_nonzero(blank)} voxels are NaN or infinite, the first at {first}"
    fault(path, "non-finite", found, "finite numbers are needed; fill or export again")
