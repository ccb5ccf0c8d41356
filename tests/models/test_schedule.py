"""Noise schedules: hand-worked values, the laws that tie the buffers together, and the reference arrays."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from reference_settings import load_arrays, timesteps

from cddpm.models.schedule import cosine_betas, linear_betas, schedule_buffers

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
