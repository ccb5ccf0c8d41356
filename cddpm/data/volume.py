"""NIfTI files: one volume in, one volume out."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt

from cddpm import artifact


def write_volume(
    path: Path, data: npt.NDArray[np.generic], affine: npt.NDArray[np.floating], dtype: npt.DTypeLike = None
) -> None:
    """Write ``data`` (X, Y, Z) with ``affine`` (4, 4; voxel index to mm, RAS+) atomically as ``.nii`` or ``.nii.gz``.

    Equal arguments give equal bytes: the gzip header carries no time and no name. Parent folders are made.
    """
    dtype = data.dtype if dtype is None else np.dtype(dtype)
    image = nib.Nifti1Image(np.asarray(data, dtype=dtype), np.asarray(affine, dtype=np.float64), dtype=dtype)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    raw = image.to_bytes()
    artifact.write_bytes(path, gzip.compress(raw, compresslevel=3, mtime=0) if path.suffix == ".gz" else raw)
