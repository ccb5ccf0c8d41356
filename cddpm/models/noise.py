"""Noise with one seed per slice, so that a slice's noise never depends on its batch, its worker or the run's length.

Simplex: OpenSimplex in two dimensions (K. Spencer's OpenSimplex 1.1, public domain), and octaves of it. The value at a point p
is a sum over the points v of a triangular lattice that lie closer than sqrt(2):

    noise(p) = 1/47 sum_v (2 - |p - v|^2)^4  g(v) . (p - v)

with g(v) one of eight gradients, picked by a permutation table that the seed makes. At most four v count. Only g depends
on the seed, so for many slices of one shape the rest is a table, computed once: a slice costs four gathers and eight
multiplications per pixel and octave.

Pyramid: white noise and ever coarser copies of it, so that all sizes of structure are covered. Whitaker 2023,
"Multi-resolution noise for diffusion model training": the sum over scales i of discount^i times a Gaussian field of
(H / 2^i, W / 2^i) pixels, enlarged bilinearly. There the sum is divided by its own standard deviation; here each pixel is
divided by its standard deviation over all seeds, which is known: every pixel alone is standard normal, and the noise stays a
linear function of the draws.

Letters: B seeds, H and W pixels (y = axis 0), P = H W, O octaves, L lattice points that some pixel needs, h and w pixels of a
coarser scale.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cddpm.compiled import njit
from cddpm.config import NoiseConfig
from cddpm.seeds import generator

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_STRETCH = (1 / math.sqrt(3) - 1) / 2
_SQUISH = (math.sqrt(3) - 1) / 2
_NORM = 47.0
_GRADIENTS = np.array([[5, 2], [2, 5], [-5, 2], [-2, 5], [5, -2], [2, -5], [-5, -2], [-2, -5]], dtype=np.float32)
_GRADIENT_VARIANCE = 14.5
# Relative to the cell's corner; no other lattice point comes closer than sqrt(2) to a point of the cell.
_NEIGHBOURS = np.array([(0, 0), (1, 0), (0, 1), (1, 1), (1, -1), (-1, 1), (2, 0), (0, 2)])

_LANES = 32
"""Slices computed side by side. A constant, so that a slice never depends on how many others are asked for."""
_TILE = 64
"""Pixels computed before they are turned from (pixel, slice) to (slice, pixel) order, inside the nearest cache."""


@njit(cache=True, nogil=True)
def _shuffle(seed: int, table: Integers) -> None:
    source = np.arange(256)
    for _ in range(3):
        seed = seed * 6364136223846793005 + 1442695040888963407
    for i in range(255, -1, -1):
        seed = seed * 6364136223846793005 + 1442695040888963407
        chosen = (seed + 31) % (i + 1)
        table[i] = source[chosen]
        source[chosen] = source[i]


def permutation(seed: int) -> Integers:
    """The permutation table (256,) int64 of a 64-bit ``seed``; every seed, 0 too, is a seed like any other."""
    table = np.empty(256, dtype=np.int64)
    _shuffle(np.int64(seed), table)  # type: ignore[arg-type]  # Numba's "int" wraps around as this does
    return table


def _neighbours(x: Floats, y: Floats) -> tuple[Integers, Floats]:
    """Lattice points (..., 8, 2) around each (x, y), and the weights (..., 8, 2) of their gradients (0 when too far)."""
    point = np.stack(np.broadcast_arrays(x, y), axis=-1).astype(np.float64)
    corner = np.floor(point + point.sum(-1, keepdims=True) * _STRETCH)
    lattice = corner[..., None, :] + _NEIGHBOURS
    offset = point[..., None, :] - (lattice + lattice.sum(-1, keepdims=True) * _SQUISH)
    attenuation = np.maximum(2 - (offset**2).sum(-1, keepdims=True), 0)
    return lattice.astype(np.int64), attenuation**4 * offset / _NORM


def noise2(x: Floats, y: Floats, table: Integers) -> Floats:
    """Noise at the points (x, y), which broadcast against each other, with a permutation ``table`` (256,)."""
    lattice, weight = _neighbours(x, y)
    chosen = table[(table[lattice[..., 0] & 255] + lattice[..., 1]) & 255] >> 1 & 7
    return (_GRADIENTS[chosen] * weight).sum(axis=(-1, -2))


def _grid(shape: tuple[int, int], wavelength: float) -> tuple[Floats, Floats]:
    y, x = np.mgrid[: shape[0], : shape[1]]
    return x / wavelength, y / wavelength


def octave_field(seed: int, shape: tuple[int, int], octaves: int, persistence: float, frequency: float) -> Floats:
    """One field (H, W) float64: the sum over o of persistence^o noise(index / (frequency / 2^o)). Exact and slow."""
    table = permutation(seed)
    field = np.zeros(shape)
    for octave in range(octaves):
        field += persistence**octave * noise2(*_grid(shape, frequency / 2**octave), table)
    return field


class _Table(NamedTuple):
    points: npt.NDArray[np.int64]  # (L, 2) lattice coordinates
    nearest: npt.NDArray[np.int32]  # (P, O, 4) rows of `points`
    weight: npt.NDArray[np.float32]  # (P, O, 4, 2) factors of their gradients


def _octave_table(shape: tuple[int, int], wavelength: float, amplitude: float) -> tuple[Integers, Floats]:
    """Lattice points (P, 4, 2) of the four nearest neighbours of each pixel, and their weights (P, 4, 2)."""
    lattice, weight = _neighbours(*_grid(shape, wavelength))
    # Neighbours with weight are the nearest: those beyond the fourth weigh nothing.
    nearest = np.argsort(-(weight**2).sum(-1), axis=-1, kind="stable")[..., :4, None]
    lattice = np.take_along_axis(lattice, nearest, axis=-2).reshape(-1, 4, 2)
    return lattice, np.take_along_axis(amplitude * weight, nearest, axis=-2).reshape(-1, 4, 2)


@functools.lru_cache(maxsize=8)
def _table(shape: tuple[int, int], octaves: int, persistence: float, frequency: float, standardise: bool) -> _Table:
    # Faint octaves first: adding small to small keeps the float32 sum within 1e-6.
    parts = [_octave_table(shape, frequency / 2**o, persistence**o) for o in reversed(range(octaves))]
    lattice = np.stack([part[0] for part in parts], axis=1)
    weight = np.stack([part[1] for part in parts], axis=1)
    points, index = np.unique(lattice.reshape(-1, 2), axis=0, return_inverse=True)
    index = index.reshape(lattice.shape[:-1])
    if standardise:
        weight = weight / math.sqrt(_variance(index, weight, len(points)))
    return _Table(points, index.astype(np.int32), weight.astype(np.float32))


def _variance(index: Integers, weight: Floats, points: int) -> float:
    """Mean over pixels of the field's variance over seeds, with independent gradients of variance 14.5 per axis."""
    pixel = np.arange(len(index))[:, None, None]
    # A lattice point that serves a pixel in two octaves brings the same gradient to both: its weights add up first.
    _, place = np.unique(pixel * points + index, return_inverse=True)
    summed = [np.bincount(place.ravel(), weight[..., axis].ravel()) for axis in (0, 1)]
    return _GRADIENT_VARIANCE * float(sum((s**2).sum() for s in summed)) / len(index)


@njit(cache=True, nogil=True)
def _pick_gradients(seed: int, points: Integers, lane: int, gradient: npt.NDArray[np.float32]) -> None:
    table = np.empty(256, dtype=np.int64)
    _shuffle(seed, table)
    for i in range(len(points)):
        chosen = (table[(table[points[i, 0] & 255] + points[i, 1]) & 255] >> 1) & 7
        gradient[0, i, lane] = _GRADIENTS[chosen, 0]
        gradient[1, i, lane] = _GRADIENTS[chosen, 1]


# One thread on purpose: 1 % of a training step, free of the interpreter lock, and no second thread pool beside torch's.
@njit(cache=True, nogil=True, fastmath=True)
def _fill(seeds, points, index, weight, fields):  # type: ignore[no-untyped-def]  # numba infers the arrays
    pixels, octaves = index.shape[:2]
    gradient = np.zeros((2, len(points), _LANES), dtype=np.float32)
    gx, gy = gradient[0], gradient[1]
    tile = np.empty((_TILE, _LANES), dtype=np.float32)
    for first in range(0, len(seeds), _LANES):
        lanes = min(_LANES, len(seeds) - first)
        for lane in range(lanes):
            _pick_gradients(seeds[first + lane], points, lane, gradient)
        for start in range(0, pixels, _TILE):
            rows = min(_TILE, pixels - start)
            for row in range(rows):
                tile[row] = 0
                for octave in range(octaves):
                    a, b, c, d = index[start + row, octave]
                    w = weight[start + row, octave]
                    for lane in range(_LANES):
                        ab = (w[0, 0] * gx[a, lane] + w[0, 1] * gy[a, lane]) + (
                            w[1, 0] * gx[b, lane] + w[1, 1] * gy[b, lane]
                        )
                        cd = (w[2, 0] * gx[c, lane] + w[2, 1] * gy[c, lane]) + (
                            w[3, 0] * gx[d, lane] + w[3, 1] * gy[d, lane]
                        )
                        tile[row, lane] += ab + cd
            for lane in range(lanes):
                for row in range(rows):
                    fields[first + lane, start + row] = tile[row, lane]


def simplex_noise(
    seeds: Sequence[int] | Integers, shape: tuple[int, int], config: NoiseConfig
) -> npt.NDArray[np.float32]:
    """An independent octave field per slice: (B, H, W) float32 from ``seeds`` (B,), 64-bit integers.

    Field b is ``octave_field(seeds[b], ...)`` within 1e-6, whatever the other seeds are. With ``config.standardise`` it is
    divided by one constant that makes its variance over seeds and pixels 1 (about 0.34 otherwise).
    """
    numbers = np.asarray(seeds, dtype=np.int64)
    fields = np.empty((len(numbers), shape[0] * shape[1]), dtype=np.float32)
    table = _table(tuple(shape), config.octaves, config.persistence, config.frequency, config.standardise)
    _fill(numbers, *table, fields)
    return fields.reshape(len(numbers), *shape)


Floats32 = npt.NDArray[np.float32]
Taps = tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], Floats32]
"""Per pixel: the two coarse pixels beside it, and the weight of the second."""


def pyramid_noise(seeds: npt.NDArray[np.int64], shape: tuple[int, int], discount: float) -> Floats32:
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


def enlarged(coarse: Floats32, shape: tuple[int, int]) -> Floats32:
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
def _deviation(shape: tuple[int, int], discount: float) -> Floats32:
    """Standard deviation (H, W) over seeds of the sum: independent draws add up by the squares of their weights."""
    variance = np.ones(shape)
    for i, coarse in enumerate(coarse_shapes(shape), start=1):
        second = [_taps(c, f)[2].astype(np.float64) for c, f in zip(coarse, shape, strict=True)]
        variance += discount ** (2 * i) * np.outer(*[(1 - weight) ** 2 + weight**2 for weight in second])
    return np.sqrt(variance).astype(np.float32)


Seeds = Sequence[int] | npt.NDArray[np.int64] | Tensor


def noise(config: NoiseConfig, seeds: Seeds, shape: tuple[int, int]) -> Tensor:
    """Noise (B, 1, H, W) float32 on the CPU from ``seeds`` (B,): 64-bit integers, each deciding its slice alone.

    Equal seeds have equal fields, which are drawn once. With ``config.shared`` they are rounded to float16 (reference).
    """
    numbers, places = np.unique(np.asarray(seeds, dtype=np.int64), return_inverse=True)
    if config.kind == "simplex":
        fields = simplex_noise(numbers, shape, config)
    elif config.kind == "gaussian":
        fields = _gaussian(numbers, shape)
    elif config.kind == "pyramid":
        fields = pyramid_noise(numbers, shape, config.discount)
    else:
        raise ValueError(f"noise kind: {config.kind!r}; allowed are simplex, gaussian and pyramid")
    if config.shared:
        fields = fields.astype(np.float16).astype(np.float32)
    return torch.from_numpy(fields[places]).unsqueeze(1)


def _gaussian(seeds: npt.NDArray[np.int64], shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Standard normal (B, H, W)."""
    fields = np.empty((len(seeds), *shape), dtype=np.float32)
    for seed, field in zip(seeds, fields, strict=True):
        generator(seed).standard_normal(dtype=np.float32, out=field)
    return fields
