"""Volumes to look at, drawn: a brain with a lesion, smooth noise as its anomaly map, voxels of three different sizes."""

import numpy as np
from scipy import ndimage

from cddpm.report.viewer import Exhibit

SHAPE = (20, 24, 10)


def drawn(
    name: str = "drawn", truth: bool = True, threshold: float = 0.2, shape: tuple[int, int, int] = SHAPE
) -> Exhibit:
    """The same for the same name."""
    random = np.random.default_rng(len(name))
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    brain = x**2 + y**2 + z**2 < 0.8
    lesion = (x - 0.3) ** 2 + (y - 0.2) ** 2 + z**2 < 0.1
    image = np.where(brain, 0.5 + ndimage.gaussian_filter(random.normal(size=shape), 2) + 0.3 * lesion, 0)
    noise = np.abs(ndimage.gaussian_filter(random.normal(size=shape), 1))
    anomaly = np.where(brain, 0.3 * noise + 0.3 * ndimage.gaussian_filter(lesion.astype(float), 1), 0).astype(
        np.float16
    )
    kept = anomaly.astype(np.float64) > threshold
    return Exhibit(
        name=name,
        image=image,
        reconstruction=np.where(brain, 0.5, 0.0),
        window=(0.0, 1.0),
        anomaly_map=anomaly,
        segmentation=kept & ~ndimage.binary_opening(~lesion, iterations=3),
        truth=lesion if truth else None,
        threshold=threshold,
        voxel_size_mm=(1.0, 1.0, 2.5),
        note=f"Drawn for a test: {name}.",
    )
