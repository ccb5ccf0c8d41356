"""The Gaussian diffusion process around a network: noising, the training loss and the one-step prediction of x_0.

Letters: B slices, T noise levels, t (B,) in 0..T-1, x_0 and x_t (B, 1, H, W) in [-1, 1], eps the noise of the same shape,
abar_t the share of x_0's power that is left at t. Equations are those of Ho et al. 2020, "Denoising diffusion
probabilistic models".
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from cddpm.config import DiffusionConfig
from cddpm.models.schedule import schedule_buffers


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
        """The training loss, a float32 scalar: L1 or L2 to x_0 or eps, mean per slice, weighted by P2, mean over slices."""
        target = {"x0": x0, "eps": noise}[self.config.objective]
        distance = {"l1": F.l1_loss, "l2": F.mse_loss}[self.config.loss]
        per_slice = distance(prediction.float(), target.float(), reduction="none").flatten(1).mean(1)
        return (per_slice * self.p2_loss_weight[t]).mean()

    def predict_x0(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """x_0 in one step from the network's ``prediction`` at x_t; float32, never clamped."""
        if self.config.objective == "x0":
            return prediction.float()
        return self.predict_start_from_noise(x_t, t, prediction.float())

    def reference_x0(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """``predict_x0`` as the published code has it: for eps, x_t - sqrt(1 - abar_t) eps is left at scale sqrt(abar_t)."""
        if self.config.objective == "x0":
            return prediction.float()
        return x_t - _at(self.sqrt_one_minus_alphas_cumprod, t) * prediction.float()


def _at(values: Tensor, t: Tensor) -> Tensor:
    """``values`` (T,) at ``t`` (B,), to be broadcast over slices: (B, 1, 1, 1)."""
    return values[t].view(-1, 1, 1, 1)
