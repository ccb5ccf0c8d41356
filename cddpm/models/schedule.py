"""Noise schedules: everything about the forward process that is fixed before training.

Letters: T number of noise levels, t in 0..T-1, beta_t the variance added at t, alpha_t = 1 - beta_t,
abar_t = alpha_0 ... alpha_t ("alphas_cumprod").
"""

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[np.float64]

_COSINE_OFFSET = 0.008
_LARGEST_BETA = 0.999
_SMALLEST_VARIANCE = 1e-20


def cosine_betas(timesteps: int) -> Array:
    """beta (T,) of the cosine schedule, clipped at 0.999 (Nichol & Dhariwal 2021, eq. 17)."""
    position = np.linspace(0, 1, timesteps + 1)
    abar = np.cos((position + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * math.pi / 2) ** 2
    return np.clip(1 - abar[1:] / abar[:-1], 0, _LARGEST_BETA)


def linear_betas(timesteps: int) -> Array:
    """beta (T,) from 1e-4 to 0.02 at T = 1000, scaled by 1000 / T otherwise (Ho et al. 2020, section 4)."""
    scale = 1000 / timesteps
    return np.clip(np.linspace(scale * 1e-4, scale * 0.02, timesteps), 0, _LARGEST_BETA)


_BETAS: dict[str, Callable[[int], Array]] = {"cosine": cosine_betas, "linear": linear_betas}


def schedule_buffers(
    kind: Literal["cosine", "linear"], timesteps: int, p2_gamma: float = 0.0, p2_k: float = 1.0
) -> dict[str, Tensor]:
    """Name -> float32 (T,) of every quantity the diffusion looks up by t, computed in float64.

    The posterior q(x_{t-1} | x_t, x_0) is eq. 6-7 of Ho et al. 2020; ``p2_loss_weight`` is (k + SNR)^-gamma of
    Choi et al. 2022, eq. 8 (1 everywhere for gamma 0).
    """
    betas = _BETAS[kind](timesteps)
    abar = np.cumprod(1 - betas)
    previous = np.concatenate([[1.0], abar[:-1]])
    variance = betas * (1 - previous) / (1 - abar)
    values = {
        "betas": betas,
        "alphas_cumprod": abar,
        "alphas_cumprod_prev": previous,
        "sqrt_alphas_cumprod": np.sqrt(abar),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - abar),
        "log_one_minus_alphas_cumprod": np.log(1 - abar),
        "sqrt_recip_alphas_cumprod": np.sqrt(1 / abar),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / abar - 1),
        "posterior_variance": variance,
        # The variance is 0 at t = 0, where nothing is left to sample.
        "posterior_log_variance_clipped": np.log(np.maximum(variance, _SMALLEST_VARIANCE)),
        "posterior_mean_coef1": betas * np.sqrt(previous) / (1 - abar),
        "posterior_mean_coef2": (1 - previous) * np.sqrt(1 - betas) / (1 - abar),
        "p2_loss_weight": (p2_k + abar / (1 - abar)) ** -p2_gamma,
    }
    return {name: torch.from_numpy(value).to(torch.float32) for name, value in values.items()}
