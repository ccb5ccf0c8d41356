"""The receiver's bias field taken out: N4 (Tustison et al. 2010, IEEE TMI 29(6)), as in ITK."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813

from cddpm.data.raw.head import Grid
from cddpm.data.raw.resampling import as_array, as_itk, voxel_sizes

DARKEST = 1e-3
"""Fraction of the mean signal that stands for what is darker: N4 takes logarithms."""


def bias_field(
    image: Grid, inside: npt.NDArray[np.bool_], voxel_mm: float, iterations: Sequence[int]
) -> npt.NDArray[np.float32]:
    """The field (X, Y, Z), positive, by which ``image`` is to be divided; its geometric mean over ``inside`` is 1.

    ``inside`` (X, Y, Z): voxels that it is found from. They are shrunk to about ``voxel_mm``; ``iterations`` at most by level.
    """
    sizes = voxel_sizes(image.affine)
    factors = [max(1, int(voxel_mm / size + 0.5)) for size in sizes]
    signal = float(image.data[inside].mean())
    whole = as_itk(np.maximum(image.data, np.float32(DARKEST * signal)), sizes)
    part = sitk.BinShrink(as_itk(inside.astype(np.float32), sizes), factors) > 0.5
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations([int(n) for n in iterations])
    n4.Execute(sitk.BinShrink(whole, factors), part)
    logarithm = as_array(n4.GetLogBiasFieldAsImage(whole)).astype(np.float32)
    return np.exp(logarithm - logarithm[inside].mean(dtype=np.float64).astype(np.float32))


def otsu(data: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """What is brighter than Otsu's threshold, (X, Y, Z)."""
    return as_array(sitk.OtsuThreshold(as_itk(data), 0, 1)) > 0
