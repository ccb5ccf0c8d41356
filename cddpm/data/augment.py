"""Intensity augmentation of training slices, each from its own seed.

Legend: B batch, H x W pixels. A slice's augmentation depends on its seed alone: not on the batch, the worker or the device.
"""

import numpy as np
import torch
from torch import Tensor

from cddpm.config import AugmentationConfig


def augment(x: Tensor, seeds: Tensor, config: AugmentationConfig) -> Tensor:
    """Training slices ``x`` (B, 1, H, W), intensities about [0, 1], with slice i changed as ``seeds[i]`` says.

    ``seeds``: (B,) int64, a new one for each time a slice is seen. With ``config.enabled`` false ``x`` itself comes back.
    Raises ``ValueError`` if the seeds are not one whole number per slice.
    """
    if seeds.shape != x.shape[:1] or seeds.dtype != torch.int64:
        raise ValueError(f"seeds: {tuple(seeds.shape)} {seeds.dtype}; ({len(x)},) int64 is needed, one per slice")
    if not config.enabled:
        return x
    return apply_gamma(x, gamma_exponents(seeds, config).to(x.device))


def gamma_exponents(seeds: Tensor, config: AugmentationConfig) -> Tensor:
    """(B,) float32: exp(U(-r, r)) with probability ``gamma_probability``, else 1; r is ``gamma_log_range``."""
    # Both numbers are always drawn, so changing the probability leaves the strength of each slice as it was.
    draws = np.stack([np.random.default_rng(seed % 2**64).random(2) for seed in seeds.tolist()])
    exponents = np.exp(config.gamma_log_range * (2 * draws[:, 1] - 1))
    return torch.from_numpy(np.where(draws[:, 0] < config.gamma_probability, exponents, 1.0)).float()


def apply_gamma(x: Tensor, exponents: Tensor) -> Tensor:
    """sign(x) |x|^exponent, one exponent (B,) per slice of ``x`` (B, ...); exponent 1 changes no bit."""
    exponents = exponents.to(x.dtype).view(-1, *(1,) * (x.ndim - 1))
    return torch.where(exponents == 1, x, x.sign() * x.abs() ** exponents)
