"""The Gaussian diffusion process around a network: its schedules, noising, the training loss and the one-step prediction of x_0.

Letters: B slices, T noise levels, t (B,) in 0..T-1, x_0 and x_t (B, 1, H, W) in [-1, 1], eps the noise of the same shape,
beta_t the variance added at t, alpha_t = 1 - beta_t, abar_t = alpha_0 ... alpha_t ("alphas_cumprod") the share of x_0's power
that is left at t. Equations are those of Ho et al. 2020, "Denoising diffusion probabilistic models".
"""

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cddpm.config import SSIM_WINDOW, DiffusionConfig

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


def level_index(level: int) -> int:
    """The index t = level - 1 of a noise level as configurations count it, 1..T. Raises ``ValueError`` below 1."""
    if level < 1:
        raise ValueError(f"noise level {level}: levels count from 1")
    return level - 1


def to_signed(image: Tensor) -> Tensor:
    """Intensities of [0, 1] on the diffusion's scale [-1, 1]."""
    return image * 2 - 1


def to_unit(x: Tensor) -> Tensor:
    """From the diffusion's scale [-1, 1] back to intensities of [0, 1]; never clamped."""
    return (x + 1) / 2


class Diffusion(nn.Module):
    """The process of ``config``: buffers (T,) that nothing reassigns and that stay float32 in a bfloat16 model."""

    betas: Tensor
    alphas_cumprod: Tensor
    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor
    sqrt_recip_alphas_cumprod: Tensor
    sqrt_recipm1_alphas_cumprod: Tensor
    posterior_variance: Tensor
    posterior_log_variance_clipped: Tensor
    posterior_mean_coef1: Tensor
    posterior_mean_coef2: Tensor
    p2_loss_weight: Tensor

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__()
        self.config = config
        buffers = schedule_buffers(config.schedule, config.timesteps, config.p2_gamma, config.p2_k)
        for name, values in buffers.items():
            # Made from the configuration, so never part of a checkpoint.
            self.register_buffer(name, values, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Diffusion":
        # Follow a move to another device, refuse a change of type: abar in bfloat16 has 3 digits.
        def move(values: Tensor) -> Tensor:
            moved = fn(values)
            return moved if moved.dtype == values.dtype else values.to(moved.device)

        return super()._apply(move, recurse)

    def q_sample(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps (eq. 4)."""
        return _at(self.sqrt_alphas_cumprod, t) * x0 + _at(self.sqrt_one_minus_alphas_cumprod, t) * noise

    def predict_start_from_noise(self, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_0 = (x_t - sqrt(1 - abar_t) eps) / sqrt(abar_t)."""
        return _at(self.sqrt_recip_alphas_cumprod, t) * x_t - _at(self.sqrt_recipm1_alphas_cumprod, t) * noise

    def predict_noise_from_start(self, x_t: Tensor, t: Tensor, x0: Tensor) -> Tensor:
        """eps = (x_t - sqrt(abar_t) x_0) / sqrt(1 - abar_t)."""
        return (_at(self.sqrt_recip_alphas_cumprod, t) * x_t - x0) / _at(self.sqrt_recipm1_alphas_cumprod, t)

    def q_posterior(self, x0: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean (B, 1, H, W), variance and clipped log variance (B, 1, 1, 1) of q(x_{t-1} | x_t, x_0) (eq. 6 and 7)."""
        mean = _at(self.posterior_mean_coef1, t) * x0 + _at(self.posterior_mean_coef2, t) * x_t
        return mean, _at(self.posterior_variance, t), _at(self.posterior_log_variance_clipped, t)

    def loss(self, prediction: Tensor, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The training loss, a float32 scalar: the distance to x_0 or eps per slice, weighted by P2, mean over slices.

        Raises ``ValueError`` for loss "ssim-l1" of slices below 11 x 11 pixels.
        """
        target = {"x0": x0, "eps": noise}[self.config.objective]
        return (self._distance(prediction.float(), target.float()) * self.p2_loss_weight[t]).mean()

    def _distance(self, prediction: Tensor, target: Tensor) -> Tensor:
        """(B,): mean absolute or squared difference on the scale [-1, 1], or L1 and 1 - SSIM on the scale [0, 1]."""
        if self.config.loss == "l1":
            return (prediction - target).abs().flatten(1).mean(1)
        if self.config.loss == "l2":
            return (prediction - target).square().flatten(1).mean(1)
        if self.config.loss == "ssim-l1":
            prediction, target = to_unit(prediction), to_unit(target)
            absolute = (prediction - target).abs().flatten(1).mean(1)
            return absolute + self.config.ssim_weight * (1 - structural_similarity(prediction, target))
        raise ValueError(f"loss: {self.config.loss!r}; allowed are l1, l2 and ssim-l1")

    def predict_x0(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """x_0 in one step from the network's ``prediction`` at x_t; float32, never clamped.

        With ``eps_reconstruction`` "unscaled" an eps network's x_t - sqrt(1 - abar_t) eps stays at scale sqrt(abar_t).
        """
        if self.config.objective == "x0":
            return prediction.float()
        if self.config.eps_reconstruction == "exact":
            return self.predict_start_from_noise(x_t, t, prediction.float())
        if self.config.eps_reconstruction == "unscaled":
            return x_t - _at(self.sqrt_one_minus_alphas_cumprod, t) * prediction.float()
        raise ValueError(f"eps_reconstruction: {self.config.eps_reconstruction!r}; allowed are exact and unscaled")


def structural_similarity(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean SSIM (B,) float32 of pictures (B, 1, H, W) in [0, 1], with gradient; only whole windows count.

    Wang et al. 2004, "Image quality assessment", eq. 13: Gaussian window of 11 pixels and standard deviation 1.5, data
    range 1, K1 = 0.01, K2 = 0.03. Raises ``ValueError`` for pictures smaller than the window.
    """
    from monai.metrics.regression import compute_ssim_and_cs  # takes seconds; only this loss needs it

    if min(prediction.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(
            f"SSIM of pictures of shape {tuple(prediction.shape)}: allowed are edges of {SSIM_WINDOW} pixels or more"
        )
    # Variances are small differences of large means: three digits, as of TF32 and bfloat16, would be noise beside K2.
    tf32_off = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    with torch.autocast(prediction.device.type, enabled=False), tf32_off:
        ssim, _ = compute_ssim_and_cs(
            prediction.float(), target.float(), 2, kernel_size=(SSIM_WINDOW,) * 2, kernel_sigma=(1.5, 1.5)
        )
    return ssim.flatten(1).mean(1)


def _at(values: Tensor, t: Tensor) -> Tensor:
    """``values`` (T,) at ``t`` (B,), to be broadcast over slices: (B, 1, 1, 1)."""
    return values[t].view(-1, 1, 1, 1)
