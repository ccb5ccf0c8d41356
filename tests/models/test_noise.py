"""Noise per slice: seeds decide everything, and nothing else does."""

import numpy as np
import pytest
import torch

from cddpm.config import NoiseConfig
from cddpm.models.noise import noise, octave_field
from cddpm.seeds import seed_of

CONFIGS = [NoiseConfig(), NoiseConfig(standardise=True), NoiseConfig(kind="gaussian"), NoiseConfig(kind="pyramid")]
SEEDS = [seed_of(0, "subject", number) for number in range(40)]


@pytest.mark.parametrize("config", CONFIGS)
def test_a_slice_is_decided_by_its_seed_alone(config):
    together = noise(config, SEEDS, (16, 24))
    assert together.shape == (40, 1, 16, 24)
    assert together.dtype == torch.float32
    backwards = noise(config, SEEDS[::-1], (16, 24)).flip(0)
    alone = torch.cat([noise(config, [seed], (16, 24)) for seed in SEEDS])
    assert torch.equal(together, backwards)
    assert torch.equal(together, alone)


@pytest.mark.parametrize("config", CONFIGS)
def test_different_seeds_give_different_noise(config):
    fields = noise(config, SEEDS, (16, 16)).flatten(1)
    assert len(torch.unique(fields, dim=0)) == len(SEEDS)


@pytest.mark.parametrize("config", CONFIGS)
def test_lists_arrays_and_tensors_are_the_same_seeds(config):
    expected = noise(config, SEEDS[:3], (8, 8))
    assert torch.equal(noise(config, np.array(SEEDS[:3]), (8, 8)), expected)
    assert torch.equal(noise(config, torch.tensor(SEEDS[:3]), (8, 8)), expected)


def test_simplex_noise_is_the_octave_field_of_the_seed():
    field = torch.from_numpy(octave_field(SEEDS[0], (16, 16), 6, 0.8, 64)).float()
    torch.testing.assert_close(noise(NoiseConfig(), SEEDS[:1], (16, 16))[0, 0], field, rtol=0, atol=1e-6)


def test_gaussian_noise_is_standard_normal_and_uncorrelated_between_seeds():
    fields = noise(NoiseConfig(kind="gaussian"), SEEDS, (64, 64)).flatten(1).double()
    assert abs(fields.mean()) < 0.01
    assert fields.std().item() == pytest.approx(1, abs=0.01)
    assert torch.corrcoef(fields).fill_diagonal_(0).abs().max() < 0.08


def test_negative_seeds_are_seeds():
    fields = noise(NoiseConfig(kind="gaussian"), [-1, 1], (4, 4))
    assert not torch.equal(fields[0], fields[1])
