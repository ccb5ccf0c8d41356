"""Scans as another scanner would have made them: changed before they are prepared, inside of the brain alone.

What an affine change of intensities does is not among them: no preparation sees it.
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from cddpm.config import ScannerChange
from cddpm.data.prepare import background_of
from cddpm.data.volume import Volume
from cddpm.seeds import seed_of

POWERS = {"darker": 1.5, "brighter": 1 / 1.5}
"""Intensities to this power: another contrast between the tissues, in the same order."""
BIAS = 0.3
"""Largest and least value of the logarithm of the bias field, but for its sign."""
NOISE = 0.04
"""Standard deviation of the noise of each channel, against the 99th percentile of the brain."""
BLUR_MM = 4.0
"""Full width at half maximum of the point-spread function that is added."""


def as_scanned(image: Volume, mask: Volume, change: ScannerChange, name: str) -> Volume:
    """A scan as another scanner would have made it, brain ``mask`` on the same grid; ``name`` alone decides what is drawn.

    ``darker``, ``brighter``: intensities above the background, against the 99th percentile of the brain, to a power.
    ``bias-field``: times exp of a polynomial of order 3 in space (Van Leemput et al. 1999). ``noise``: Rician (Gudbjartsson and
    Patz 1995). ``resolution``: blurred. What is outside of the mask stays, as if the brain were extracted afterwards.
    """
    brain = mask.data > 0
    background = background_of(image.data, brain)
    unit = np.percentile(image.data[brain], 99) - background
    plain = (image.data - background) / unit
    changed = _changed(plain, change, np.random.default_rng(seed_of(0, "scanner", change, name)), image.voxel_size_mm)
    data = np.where(brain, changed * unit + background, image.data).astype(np.float32)
    return replace(image, data=data)


def _changed(
    plain: npt.NDArray[np.float32], change: ScannerChange, random: np.random.Generator, voxel_size_mm: tuple[float, ...]
) -> npt.NDArray[np.floating]:
    """``plain``: background 0, the brain's 99th percentile 1."""
    match change:
        case "darker" | "brighter":
            return np.asarray(np.sign(plain) * np.abs(plain) ** POWERS[change])
        case "bias-field":
            return plain * bias_field(plain.shape, random)
        case "noise":
            real, imaginary = NOISE * random.standard_normal((2, *plain.shape))
            return np.hypot(plain + real, imaginary)
        case "resolution":
            deviations = [BLUR_MM / np.sqrt(8 * np.log(2)) / size for size in voxel_size_mm]
            return np.asarray(ndimage.gaussian_filter(plain, deviations))
    raise AssertionError(change)


def bias_field(shape: tuple[int, ...], random: np.random.Generator) -> npt.NDArray[np.float64]:
    """(X, Y, Z): exp of a polynomial of order 3 with drawn coefficients, between exp(-BIAS) and exp(BIAS)."""
    import torch  # slow to import

    from cddpm.data.augment import BIAS_ORDER, apply_bias

    count = len(
        [1 for i in range(BIAS_ORDER + 1) for j in range(BIAS_ORDER + 1 - i) for _ in range(BIAS_ORDER + 1 - i - j)]
    )
    drawn = random.uniform(-1, 1, (1, count))
    exponent = np.log(apply_bias(torch.ones(1, *shape, dtype=torch.float64), drawn).numpy()[0])
    low, high = exponent.min(), exponent.max()
    return np.asarray(np.exp(BIAS * (2 * (exponent - low) / (high - low) - 1)))
