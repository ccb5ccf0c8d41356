"""Noise with one seed per slice, so that a slice's noise never depends on its batch, its worker or the run's length."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cddpm.config import NoiseConfig
from cddpm.models.pyramid import pyramid_noise
from cddpm.models.simplex import simplex_noise
from cddpm.seeds import generator

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
