"""The diffusion process: inverses, hand-worked values, fixed precision, and parity with the reference arrays."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from own_reference.networks import OBJECTIVES, SCHEDULES, Forward, process
from reference_settings import Arrays, load_arrays, timesteps, weights
from torch import nn

from cddpm.config import DiffusionConfig
from cddpm.models.diffusion import (
    Diffusion,
    cosine_betas,
    level_index,
    linear_betas,
    schedule_buffers,
    structural_similarity,
    to_signed,
    to_unit,
)

KINDS: tuple[Literal["cosine", "linear"], ...] = ("cosine", "linear")


def test_linear_betas_run_from_1e_4_to_2e_2():
    betas = linear_betas(1000)
    assert betas[0] == pytest.approx(1e-4)
    assert betas[-1] == pytest.approx(0.02)
    assert np.diff(betas) == pytest.approx((0.02 - 1e-4) / 999)


def test_linear_betas_of_few_levels_stay_below_one():
    assert linear_betas(10).max() == 0.999


def test_cosine_betas_of_two_levels_by_hand():
    angle = [((position + 0.008) / 1.008) * math.pi / 2 for position in (0, 0.5)]
    assert cosine_betas(2) == pytest.approx([1 - (math.cos(angle[1]) / math.cos(angle[0])) ** 2, 0.999])


@pytest.mark.parametrize("kind", KINDS)
def test_signal_and_noise_power_add_up_to_one(kind):
    buffers = schedule_buffers(kind, 1000)
    power = buffers["sqrt_alphas_cumprod"] ** 2 + buffers["sqrt_one_minus_alphas_cumprod"] ** 2
    torch.testing.assert_close(power, torch.ones(1000))


@pytest.mark.parametrize("kind", KINDS)
def test_signal_only_falls(kind):
    assert (schedule_buffers(kind, 1000)["alphas_cumprod"].diff() < 0).all()


def test_p2_weights_are_one_for_gamma_0_and_1_minus_abar_for_gamma_1_and_k_1():
    assert (schedule_buffers("cosine", 1000)["p2_loss_weight"] == 1).all()
    weighted = schedule_buffers("cosine", 1000, p2_gamma=1.0)
    torch.testing.assert_close(weighted["p2_loss_weight"], 1 - weighted["alphas_cumprod"], rtol=1e-5, atol=1e-7)


@pytest.mark.parity
@pytest.mark.parametrize("kind", KINDS)
def test_every_buffer_equals_the_reference(kind, reference_dir: Path, near: Callable[..., None]):
    arrays = load_arrays(reference_dir, "diffusion_io")
    buffers = schedule_buffers(kind, timesteps(arrays))
    stored = {name.partition("/")[2] for name in arrays if name.startswith(f"{kind}/")}
    assert set(buffers) < stored  # the rest are results with them
    for name, values in buffers.items():
        expected = arrays[f"{kind}/{name}"]
        np.testing.assert_allclose(values.numpy(), expected, rtol=1e-6, err_msg=name)
        near(f"schedule: {kind} buffers", values, expected, 1e-6)
    weighted = schedule_buffers(kind, timesteps(arrays), p2_gamma=1.0, p2_k=1.0)["p2_loss_weight"]
    near("schedule: P2 weights", weighted, arrays[f"{kind}/p2_loss_weight_gamma1"], 1e-6)


Near = Callable[..., None]

T = torch.tensor([0, 499, 990])


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """x_0 and noise (3, 1, 8, 8)."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(3, 1, 8, 8, generator=generator) * 2 - 1, torch.randn(3, 1, 8, 8, generator=generator)


def test_levels_count_from_one():
    assert [level_index(level) for level in (1, 250, 1000)] == [0, 249, 999]
    with pytest.raises(ValueError, match="noise level 0: levels count from 1"):
        level_index(0)


def test_scales_are_inverse_and_unclamped():
    image = torch.tensor([-0.1, 0.0, 0.5, 1.0, 1.2])
    torch.testing.assert_close(to_signed(image), torch.tensor([-1.2, -1.0, 0.0, 1.0, 1.4]))
    torch.testing.assert_close(to_unit(to_signed(image)), image)


def test_noising_by_hand():
    diffusion = Diffusion(DiffusionConfig(schedule="linear"))
    beta = 1e-4
    x_t = diffusion.q_sample(torch.full((1, 1, 1, 1), 0.5), torch.tensor([0]), torch.full((1, 1, 1, 1), 2.0))
    assert x_t.item() == pytest.approx(0.5 * (1 - beta) ** 0.5 + 2 * beta**0.5)


def test_without_noise_only_the_scale_changes():
    diffusion = Diffusion(DiffusionConfig())
    x0, noise = batch()
    expected = x0 * diffusion.alphas_cumprod[T].sqrt().view(-1, 1, 1, 1)
    torch.testing.assert_close(diffusion.q_sample(x0, T, torch.zeros_like(noise)), expected)


def test_start_and_noise_predictions_invert_the_noising():
    diffusion = Diffusion(DiffusionConfig())
    x0, noise = batch()
    x_t = diffusion.q_sample(x0, T, noise)
    torch.testing.assert_close(diffusion.predict_start_from_noise(x_t, T, noise), x0, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(diffusion.predict_noise_from_start(x_t, T, x0), noise, rtol=1e-4, atol=1e-4)


def test_the_posterior_at_level_zero_is_the_start_without_variance():
    diffusion = Diffusion(DiffusionConfig())
    x0, noise = batch()
    mean, variance, log_variance = diffusion.q_posterior(x0, noise, torch.zeros(3, dtype=torch.int64))
    torch.testing.assert_close(mean, x0)
    assert not variance.any()
    assert log_variance.flatten().tolist() == pytest.approx([np.log(1e-20)] * 3)


@pytest.mark.parametrize("objective", ["x0", "eps"])
@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_the_right_prediction_costs_nothing_and_gives_the_start(objective, loss):
    diffusion = Diffusion(DiffusionConfig(objective=objective, loss=loss))
    x0, noise = batch()
    right = x0 if objective == "x0" else noise
    assert diffusion.loss(right, x0, noise, T) == 0
    x_t = diffusion.q_sample(x0, T, noise)
    torch.testing.assert_close(diffusion.predict_x0(right, x_t, T), x0, rtol=1e-4, atol=1e-4)


def test_losses_by_hand():
    x0, noise = torch.zeros(2, 1, 1, 2), torch.ones(2, 1, 1, 2)
    prediction = torch.tensor([[0.0, 1.0], [3.0, 3.0]]).view(2, 1, 1, 2)
    t = torch.tensor([5, 6])
    loss = {
        (objective, kind): Diffusion(DiffusionConfig(objective=objective, loss=kind)).loss(prediction, x0, noise, t)
        for objective in ("x0", "eps")
        for kind in ("l1", "l2")
    }
    assert loss == {("x0", "l1"): 1.75, ("x0", "l2"): 4.75, ("eps", "l1"): 1.25, ("eps", "l2"): 2.25}


def test_p2_weighs_each_slice_by_its_level():
    diffusion = Diffusion(DiffusionConfig(p2_gamma=1.0))
    x0, noise = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    weight = 1 - diffusion.alphas_cumprod[[100, 800]]
    found = diffusion.loss(torch.ones(2, 1, 2, 2), x0, noise, torch.tensor([100, 800]))
    assert found.item() == pytest.approx(weight.mean().item(), rel=1e-5)


def test_the_published_eps_reconstruction_lacks_the_division():
    diffusion = Diffusion(DiffusionConfig(objective="eps", eps_reconstruction="unscaled"))
    x0, noise = batch()
    scale = diffusion.sqrt_alphas_cumprod[T].view(-1, 1, 1, 1)
    x_t = diffusion.q_sample(x0, T, noise)
    torch.testing.assert_close(diffusion.predict_x0(noise, x_t, T), x0 * scale, rtol=1e-4, atol=1e-5)


def test_reconstructions_of_an_x0_network_are_what_it_says():
    diffusion = Diffusion(DiffusionConfig(eps_reconstruction="unscaled"))
    x0, noise = batch()
    assert torch.equal(diffusion.predict_x0(x0, noise, T), x0)


def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    """Two noisy pictures (2, 1, 17, 14) on the scale [-1, 1], one of them nearly flat, and predictions of them."""
    generator = torch.Generator().manual_seed(3)
    x0 = torch.rand(2, 1, 17, 14, generator=generator) * 2 - 1
    x0[1] = 0.2 + 0.02 * x0[1]
    return x0, x0 + 0.3 * torch.randn(2, 1, 17, 14, generator=generator)


def plain_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """The definition of Wang et al. 2004 on pictures (H, W) in [0, 1], window by window."""
    axis = np.arange(-5, 6)
    weight = np.exp(-(axis[:, None] ** 2 + axis**2) / (2 * 1.5**2))
    weight /= weight.sum()
    values = []
    for row, column in np.ndindex(a.shape[0] - 10, a.shape[1] - 10):
        x, y = (p[row : row + 11, column : column + 11] for p in (a, b))
        mx, my = (weight * x).sum(), (weight * y).sum()
        vx, vy = (weight * (x - mx) ** 2).sum(), (weight * (y - my) ** 2).sum()
        covariance = (weight * (x - mx) * (y - my)).sum()
        luminance = (2 * mx * my + 1e-4) / (mx**2 + my**2 + 1e-4)
        values.append(luminance * (2 * covariance + 9e-4) / (vx + vy + 9e-4))
    return float(np.mean(values))


@pytest.mark.slow
def test_ssim_and_l1_follow_their_definitions_on_the_unit_scale():
    x0, prediction = pictures()
    diffusion = Diffusion(DiffusionConfig(loss="ssim-l1", ssim_weight=0.7, p2_gamma=1.0))
    t = torch.tensor([100, 800])
    images = [to_unit(p).double().numpy()[:, 0] for p in (prediction, x0)]
    ssim = [plain_ssim(a, b) for a, b in zip(*images, strict=True)]
    assert abs(ssim[0] - ssim[1]) > 0.1
    expected = np.abs(images[0] - images[1]).mean((1, 2)) + 0.7 * (1 - np.array(ssim))
    weight = 1 - diffusion.alphas_cumprod[t].numpy()
    found = diffusion.loss(prediction, x0, torch.zeros_like(x0), t)
    assert found.item() == pytest.approx((weight * expected).mean(), rel=1e-5)


def test_equal_pictures_have_no_ssim_loss_and_others_a_gradient_towards_them():
    x0, prediction = pictures()
    diffusion, t = Diffusion(DiffusionConfig(loss="ssim-l1", ssim_weight=2.0)), torch.tensor([3, 4])
    assert diffusion.loss(x0, x0, x0, t) == 0
    prediction.requires_grad_()
    loss = diffusion.loss(prediction, x0, x0, t)
    loss.backward()
    assert prediction.grad.isfinite().all()
    assert prediction.grad.flatten(1).any(1).all()
    better = prediction.detach() - 0.5 * prediction.grad
    assert diffusion.loss(better, x0, x0, t) < loss


def test_ssim_is_computed_in_float32_whatever_the_network_computes_in():
    x0, prediction = pictures()
    exact = structural_similarity(to_unit(prediction), to_unit(x0))
    with torch.autocast("cpu", torch.bfloat16):
        found = structural_similarity(to_unit(prediction), to_unit(x0))
    assert found.dtype == torch.float32
    assert torch.equal(found, exact)


def test_pictures_smaller_than_the_window_are_refused():
    x0, _ = batch()
    with pytest.raises(ValueError, match=r"shape \(3, 1, 8, 8\): allowed are edges of 11 pixels or more"):
        Diffusion(DiffusionConfig(loss="ssim-l1")).loss(x0, x0, x0, T)


def test_buffers_stay_float32_and_out_of_checkpoints():
    diffusion = Diffusion(DiffusionConfig())
    before = diffusion.alphas_cumprod.clone()
    model = nn.ModuleList([diffusion]).to(torch.bfloat16).half().double()
    assert all(buffer.dtype == torch.float32 for buffer in model.buffers())
    assert torch.equal(diffusion.alphas_cumprod, before)
    assert diffusion.state_dict() == {}
    assert diffusion.to("meta").betas.device.type == "meta"


@pytest.fixture
def arrays(reference_dir: Path) -> Arrays:
    return load_arrays(reference_dir, "diffusion_io")


@pytest.fixture
def forward(reference_dir: Path, arrays: Arrays) -> Forward:
    return Forward(arrays, weights(reference_dir, "unet_small"), torch.float32, timesteps(arrays))


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_process_equals_the_reference(schedule, arrays: Arrays, near: Near):
    for name, value in process(arrays, schedule, timesteps(arrays), torch.float32).items():
        near(f"diffusion: {name}", value, arrays[f"{schedule}/{name}"])


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("objective", OBJECTIVES)
@torch.no_grad()
def test_losses_and_reconstructions_equal_the_reference(
    schedule, objective, arrays: Arrays, forward: Forward, near: Near
):
    published = f"fwd/{schedule}/{OBJECTIVES[objective]}"
    for kind in ("l1", "l2"):
        settings = {"schedule": schedule, "objective": objective, "loss": kind, "eps_reconstruction": "unscaled"}
        loss, reconstruction = forward(settings, arrays["fwd_t"], arrays["fwd_noise"])
        near(f"diffusion: {kind} loss, objective {objective}", loss, arrays[f"{published}/{kind}/loss"])
    near(f"diffusion: reconstruction, objective {objective}", reconstruction, arrays[f"{published}/reco"])


@pytest.mark.slow
@pytest.mark.parity
@torch.no_grad()
def test_half_precision_noise_and_p2_equal_the_reference(arrays: Arrays, forward: Forward, near: Near):
    loss, reconstruction = forward({}, arrays["fwd_t"], arrays["fwd_noise_f16"])
    near("diffusion: loss, float16 noise", loss, arrays["fwd_halfnoise/loss"])
    near("diffusion: reconstruction, float16 noise", reconstruction, arrays["fwd_halfnoise/reco"])
    loss, _ = forward({"p2_gamma": 1.0}, arrays["fwd_t"], arrays["fwd_noise"])
    near("diffusion: loss with P2 weights", loss, arrays["fwd_p2gamma1/loss"])


@pytest.mark.slow
@pytest.mark.parity
@torch.no_grad()
def test_the_ensemble_over_levels_equals_the_reference(arrays: Arrays, forward: Forward, near: Near):
    levels = [level_index(int(step)) for step in arrays["ens_steps"]]
    runs = [forward({}, t, noise) for t, noise in zip(levels, arrays["ens_noise"], strict=True)]
    near("ensemble: losses", torch.stack([loss for loss, _ in runs]), arrays["ens_losses"])
    mean = torch.stack([reconstruction for _, reconstruction in runs]).mean(0)
    near("ensemble: mean reconstruction", mean, arrays["ens_reco"])


@pytest.mark.slow
@pytest.mark.parity
def test_three_training_steps_equal_the_reference(arrays: Arrays, forward: Forward, near: Near):
    losses, after = forward.train(arrays)
    for loss, expected in zip(losses, arrays["train3_losses"], strict=True):
        near("three steps of Adam: losses", loss, expected)
    near("three steps of Adam: loss afterwards", after, arrays["train3_loss_step0_after"])
