"""Intensity augmentation of training slices, each from its own seed.

Legend: B batch, H x W pixels, N pixels along one axis, D axes (2 or 3), K coefficients. A slice's augmentation depends on
its seed alone: not on the batch, the worker or the device.

The four changes are those of TorchIO (Pérez-García et al. 2021) in the order gamma, bias field, blur, ghosting, written for
a whole batch at once and for 2 or 3 axes. Blur and ghosting are linear along each axis, so both are one (N, N) matrix.
"""

import functools
import itertools
import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cddpm.config import AugmentationConfig
from cddpm.seeds import uniform

Floats = npt.NDArray[np.float64]

BIAS_ORDER = 3
GHOST_RESTORE = 0.02
"""Part of the k-space, around its centre, that ghosting leaves as it is (TorchIO's default)."""
_BLUR_REACH = 4.0
"""Standard deviations at which the Gaussian is cut, as SciPy does."""

# What each of a slice's uniform numbers decides. A new change takes new places at the end: the others keep their draws.
_GAMMA, _BIAS, _BLUR, _GHOSTING = (0, 1), (2, 13), (13, 16), (16, 20)
_DRAWS = 20


def augment(x: Tensor, seeds: Tensor, config: AugmentationConfig, voxel_size_mm: float = 1.0) -> Tensor:
    """Training slices ``x`` (B, 1, H, W), intensities about [0, 1], with slice i changed as ``seeds[i]`` says.

    ``seeds``: (B,) int64, a new one for each time a slice is seen; ``voxel_size_mm``: of the working grid, for the blur.
    With ``config.enabled`` false ``x`` itself comes back. Raises ``ValueError`` if the seeds are not one whole number per
    slice.
    """
    if seeds.shape != x.shape[:1] or seeds.dtype != torch.int64:
        raise ValueError(f"seeds: {tuple(seeds.shape)} {seeds.dtype}; ({len(x)},) int64 is needed, one per slice")
    if not config.enabled:
        return x
    draws = uniform_draws(seeds)
    x = apply_gamma(x, gamma_exponents(draws, config).to(x.device))
    x = _biased(x, draws[:, slice(*_BIAS)], config)
    x = _blurred(x, draws[:, slice(*_BLUR)], config, voxel_size_mm)
    return _ghosted(x, draws[:, slice(*_GHOSTING)], config)


def gamma_exponents(draws: Floats, config: AugmentationConfig) -> Tensor:
    """(B,) float32 of ``uniform_draws``: exp(U(-r, r)) with ``gamma_probability``, else 1; r is ``gamma_log_range``."""
    chosen, strength = draws[:, _GAMMA[0]] < config.gamma_probability, draws[:, _GAMMA[1]]
    exponents = np.exp(config.gamma_log_range * (2 * strength - 1))
    return torch.from_numpy(np.where(chosen, exponents, 1.0)).float()


def apply_gamma(x: Tensor, exponents: Tensor) -> Tensor:
    """sign(x) |x|^exponent, one exponent (B,) per slice of ``x`` (B, ...); exponent 1 changes no bit."""
    exponents = exponents.to(x.dtype).view(-1, *(1,) * (x.ndim - 1))
    return torch.where(exponents == 1, x, x.sign() * x.abs() ** exponents)


def apply_bias(x: Tensor, coefficients: Floats, order: int = BIAS_ORDER) -> Tensor:
    """``x`` (B, X, Y[, Z]) times exp of a polynomial in coordinates of [-1, 1] from the centre, (B, K) coefficients.

    The powers are counted as TorchIO does: the last axis fastest, total degree up to ``order``; K is 10 in 2-D and 20 in
    3-D for order 3. Van Leemput et al. 1999. Raises ``ValueError`` for another number of coefficients.
    """
    basis = _monomials(tuple(x.shape[1:]), order)
    if coefficients.shape != (len(x), len(basis)):
        raise ValueError(f"coefficients: {coefficients.shape}; {(len(x), len(basis))} is needed for these axes")
    fields = np.exp(coefficients @ basis).reshape(x.shape)
    return x * torch.from_numpy(fields).to(x)


def blur_matrices(size: int, stds: Floats) -> Floats:
    """(B, N, N): Gaussian blur along an axis of ``size`` N, standard deviations (B,) in voxels; mirrored at the edge."""
    reach = max(1, int(_BLUR_REACH * float(stds.max(initial=0.0)) + 0.5))
    offsets = np.arange(-reach, reach + 1)
    safe = np.where(stds > 0, stds, 1.0)[:, None]
    weights = np.exp(-0.5 * (offsets / safe) ** 2) * (np.abs(offsets) <= (_BLUR_REACH * safe + 0.5).astype(int))
    weights = np.where(stds[:, None] > 0, weights, offsets == 0)
    weights /= weights.sum(1, keepdims=True)
    return np.asarray(weights @ _shifts(size, reach)).reshape(-1, size, size)


def ghost_matrices(size: int, numbers: npt.NDArray[np.int64], intensities: Floats, restore: float) -> Floats:
    """(B, N, N): ghosts along an axis of ``size`` N: every ``numbers[b]``-th plane of the k-space times 1 - intensity.

    ``restore``: part of the planes, around the centre, that stay. Every filter of the k-space is a circular convolution,
    of which the real part is taken.
    """
    places = np.arange(size)
    factors = np.where(places % numbers[:, None] == 0, 1 - intensities[:, None], 1.0)
    half = round(restore * size) // 2
    factors[:, size // 2 - half : size // 2 + half] = 1.0
    kernels = np.fft.ifft(np.fft.ifftshift(factors, axes=1), axis=1).real
    return np.asarray(kernels[:, (places[:, None] - places[None, :]) % size])


def along_axis(x: Tensor, axis: int, matrices: Floats) -> Tensor:
    """``x`` (B, X, Y[, Z]) with ``matrices`` (B, N, N) applied along ``axis``, counted from 0 for X."""
    moved = x.movedim(axis + 1, 1)
    result = torch.from_numpy(matrices).to(x) @ moved.flatten(2)
    return result.view(moved.shape).movedim(1, axis + 1)


def uniform_draws(seeds: Tensor) -> Floats:
    """(B, 20) uniform numbers. All are always drawn, so a change of one setting leaves all else of each slice as it was."""
    return uniform(seeds.tolist(), _DRAWS)


def _biased(x: Tensor, draws: Floats, config: AugmentationConfig) -> Tensor:
    rows = np.flatnonzero(draws[:, 0] < config.bias_probability)
    if not rows.size:
        return x
    coefficients = config.bias_coefficient * (2 * draws[rows, 1:] - 1)
    return _replaced(x, rows, apply_bias(x[rows, 0], coefficients))


def _blurred(x: Tensor, draws: Floats, config: AugmentationConfig, voxel_size_mm: float) -> Tensor:
    rows = np.flatnonzero(draws[:, 0] < config.blur_probability)
    if not rows.size:
        return x
    stds = draws[rows, 1:] * config.blur_std_mm / voxel_size_mm
    part = x[rows, 0]
    for axis in range(2):
        part = along_axis(part, axis, blur_matrices(int(part.shape[axis + 1]), stds[:, axis]))
    return _replaced(x, rows, part)


def _ghosted(x: Tensor, draws: Floats, config: AugmentationConfig) -> Tensor:
    """Ghosts along H or W, each for half of the slices that have some."""
    low, high = config.ghosting_number
    faint, strong = config.ghosting_intensity
    numbers = (low + draws[:, 1] * (high - low + 1)).astype(np.int64)
    intensities = faint + draws[:, 3] * (strong - faint)
    for axis in range(2):
        rows = np.flatnonzero((draws[:, 0] < config.ghosting_probability) & ((draws[:, 2] >= 0.5) == axis))
        if rows.size:
            matrices = ghost_matrices(int(x.shape[axis + 2]), numbers[rows], intensities[rows], GHOST_RESTORE)
            x = _replaced(x, rows, along_axis(x[rows, 0], axis, matrices))
    return x


def _replaced(x: Tensor, rows: npt.NDArray[np.int64], part: Tensor) -> Tensor:
    """A copy of ``x`` (B, 1, H, W) with ``rows`` replaced by ``part`` (rows, H, W)."""
    result = x.clone()
    result[rows, 0] = part
    return result


@functools.lru_cache(maxsize=4)
def _monomials(shape: tuple[int, ...], order: int) -> Floats:
    """(K, voxels): each product of powers of the coordinates, of total degree up to ``order``."""
    axes = [(np.arange(size) - (size - 1) / 2) / max((size - 1) / 2, 0.5) for size in shape]
    meshes = np.meshgrid(*axes, indexing="ij")
    powers = [p for p in itertools.product(range(order + 1), repeat=len(shape)) if sum(p) <= order]
    return np.stack([math.prod(m**p for m, p in zip(meshes, power, strict=True)).ravel() for power in powers])


@functools.lru_cache(maxsize=16)
def _shifts(size: int, reach: int) -> Floats:
    """(2 reach + 1, N N): for each offset the matrix that takes the voxel so far away, mirrored at both edges."""
    source = (np.arange(size)[None, :] + np.arange(-reach, reach + 1)[:, None]) % (2 * size)
    source = np.where(source < size, source, 2 * size - 1 - source)
    return (source[:, :, None] == np.arange(size)).astype(np.float64).reshape(len(source), -1)
