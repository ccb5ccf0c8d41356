"""Simulated contrast: a scan as another scanner or sequence might have made it, for tests of domain shift."""

from typing import Any

import numpy as np
import numpy.typing as npt


def apply_power(
    image: npt.NDArray[np.floating[Any]], power: float, mask: npt.NDArray[Any] | None = None
) -> npt.NDArray[np.floating[Any]]:
    """sign(x) |x|^power for every voxel x of an image (S, H, W) scaled to [0, 1]; same shape and type.

    Powers below 1 brighten, above 1 darken; 0 and 1 stay, and so does the order of intensities. Resampling overshoots
    [0, 1] a little: below 0 the curve is mirrored, above 1 it goes on. Outside of ``mask`` (S, H, W; empty: nowhere)
    nothing changes. Behrendt et al. 2025 (arXiv 2312.04215) use powers from 0.3 to 2.0.

    Raises ``ValueError`` for a power that is not above 0, or a mask of another shape.
    """
    if not 0 < power < np.inf:
        raise ValueError(f"power {power}: allowed is a number above 0")
    if mask is not None and mask.shape != image.shape:
        raise ValueError(f"mask of shape {mask.shape}: the image has {image.shape}")
    curve = np.sign(image) * np.abs(image).astype(np.float64) ** power
    changed = curve if mask is None else np.where(mask > 0, curve, image)
    return changed.astype(image.dtype)
