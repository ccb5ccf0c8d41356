"""Pyramid noise: white noise and ever coarser copies of it, so that all sizes of structure are covered.

Whitaker 2023, "Multi-resolution noise for diffusion model training": the sum over scales i of discount^i times a Gaussian
field of (H / 2^i, W / 2^i) pixels, enlarged bilinearly. There the sum is divided by its own standard deviation; here each
pixel is divided by its standard deviation over all seeds, which is known: every pixel alone is standard normal, and the
noise stays a linear function of the draws.

Letters: B seeds, H and W pixels, h and w pixels of a coarser scale.
"""

import functools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from cddpm.seeds import generator

Floats = npt.NDArray[np.float32]
Taps = tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], Floats]
"""Per pixel: the two coarse pixels beside it, and the weight of the second."""


def pyramid_noise(seeds: npt.NDArray[np.int64], shape: tuple[int, int], discount: float) -> Floats:
    """Noise (B, H, W) float32, each field decided by its seed of ``seeds`` (B,) alone; 0 < ``discount`` < 1.

    Mean 0 and variance 1 over seeds at every pixel. One field's own mean and deviation vary, as its coarse parts do.
    """
    scale = 1 / _deviation(shape, discount)
    fields = np.empty((len(seeds), *shape), dtype=np.float32)
    for seed, field in zip(seeds, fields, strict=True):
        draws = generator(seed)
        draws.standard_normal(dtype=np.float32, out=field)
        for i, coarse in enumerate(coarse_shapes(shape), start=1):
            field += np.float32(discount**i) * enlarged(draws.standard_normal(coarse, dtype=np.float32), shape)
        field *= scale
    return fields


def coarse_shapes(shape: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """(h, w) of the scales below ``shape``, halved and rounded down each time, until both are 1."""
    while max(shape) > 1:
        shape = max(1, shape[0] // 2), max(1, shape[1] // 2)
        yield shape


def enlarged(coarse: Floats, shape: tuple[int, int]) -> Floats:
    """``coarse`` (h, w) interpolated bilinearly to ``shape`` (H, W), edges repeated."""
    low, high, weight = _taps(coarse.shape[0], shape[0])
    rows = coarse[low] * (1 - weight)[:, None] + coarse[high] * weight[:, None]
    low, high, weight = _taps(coarse.shape[1], shape[1])
    return (rows[:, low] * (1 - weight) + rows[:, high] * weight).astype(np.float32, copy=False)


@functools.lru_cache(maxsize=64)
def _taps(coarse: int, fine: int) -> Taps:
    # Pixels are areas: the centre of fine pixel i lies at (i + 1/2) coarse / fine, half a pixel from the index.
    place = np.clip((np.arange(fine) + 0.5) * coarse / fine - 0.5, 0, coarse - 1)
    low = np.floor(place).astype(np.intp)
    return low, np.minimum(low + 1, coarse - 1), (place - low).astype(np.float32)


@functools.lru_cache(maxsize=8)
def _deviation(shape: tuple[int, int], discount: float) -> Floats:
    """Standard deviation (H, W) over seeds of the sum: independent draws add up by the squares of their weights."""
    variance = np.ones(shape)
    for i, coarse in enumerate(coarse_shapes(shape), start=1):
        second = [_taps(c, f)[2].astype(np.float64) for c, f in zip(coarse, shape, strict=True)]
        variance += discount ** (2 * i) * np.outer(*[(1 - weight) ** 2 + weight**2 for weight in second])
    return np.sqrt(variance).astype(np.float32)
