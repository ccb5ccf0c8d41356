"""How far the intensities of a reconstruction have moved away from those of its input: divergences of two histograms.

Under domain shift a model that restores the contrast it was trained on, not the one it is shown, moves the histogram of the
whole brain; then the residual tells the contrast and not the lesion.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

BINS = 100
"""Bins of equal width over [0, 1]; what lies outside counts in the outermost."""


def divergences(
    image: npt.NDArray[np.floating[Any]], reconstruction: npt.NDArray[np.floating[Any]], bins: int = BINS
) -> dict[str, float]:
    """Between the brain voxels (N,) of an image p and those (M,) of its reconstruction q. All are 0 for equal histograms.

    - ``kl_image_reconstruction``, ``kl_reconstruction_image``: Kullback-Leibler, KL(p || q) = sum p ln(p / q) and KL(q || p),
      in nats; half a voxel is added to every bin, so that empty ones leave both finite (Krichevsky and Trofimov 1981);
    - ``jensen_shannon``: (KL(p || m) + KL(q || m)) / 2, m the mean of p and q, in nats, at most ln 2; nothing is added
      (Lin 1991, eq. 3.5);
    - ``wasserstein``: the distance of the two distributions in units of intensity, from the voxels, without bins.

    Raises ``ValueError`` when a side has no voxel, or not finite ones.
    """
    for name, values in (("image", image), ("reconstruction", reconstruction)):
        if not values.size or not np.isfinite(values).all():
            raise ValueError(f"{name}: {values.size} voxels, {np.isfinite(values).sum()} of them finite; all must be")
    p, q = (_histogram(values, bins) for values in (image, reconstruction))
    smooth_p, smooth_q = ((h + 0.5) / (h.sum() + 0.5 * bins) for h in (p, q))
    p, q = p / p.sum(), q / q.sum()
    middle = (p + q) / 2
    return {
        "kl_image_reconstruction": float(stats.entropy(smooth_p, smooth_q)),
        "kl_reconstruction_image": float(stats.entropy(smooth_q, smooth_p)),
        "jensen_shannon": float((stats.entropy(p, middle) + stats.entropy(q, middle)) / 2),
        "wasserstein": float(stats.wasserstein_distance(image.ravel(), reconstruction.ravel())),
    }


def _histogram(values: npt.NDArray[np.floating[Any]], bins: int) -> npt.NDArray[np.float64]:
    inside = np.clip(values.ravel().astype(np.float64), 0.0, 1.0)
    return np.histogram(inside, bins, (0.0, 1.0))[0].astype(np.float64)
