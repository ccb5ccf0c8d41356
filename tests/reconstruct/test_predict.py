"""One-step prediction of a volume: laws on a model whose answer can be written down, then on the real one."""

import numpy as np
import pytest
import torch
from torch import nn

from cddpm.config import DiffusionConfig, EncoderConfig, ModelConfig, NoiseConfig
from cddpm.models.cddpm import ConditionedDiffusion
from cddpm.models.condition import Condition
from cddpm.models.noise import noise, slice_seed
from cddpm.reconstruct.predict import predict_volume

NOISE = NoiseConfig(kind="gaussian")


class Affine(nn.Module):
    """x0 = 2 slice + t noise / 1000 + condition; the condition is each slice's mean, the null condition 5."""

    def __init__(self, guided: bool = True, conditioned: bool = True) -> None:
        super().__init__()
        self.null_condition = nn.Parameter(torch.full((1,), 5.0)) if guided else None
        self.conditioned = conditioned
        self.encoded, self.batches = 0, []

    def condition(self, slices):
        self.encoded += len(slices)
        return Condition(slices.mean((1, 2, 3))[:, None]) if self.conditioned else None

    def null(self, batch):
        return Condition(self.null_condition.expand(batch, -1))

    def predict_x0(self, slices, t, noise, condition):
        self.batches.append(len(slices))
        shift = 0 if condition is None else condition.vector[:, :, None, None]
        return 2 * slices + t[:, None, None, None] * noise / 1000 + shift


@pytest.fixture
def slices() -> np.ndarray:
    return np.random.default_rng(0).random((5, 8, 6)).astype(np.float16)


def predict(model, slices, levels=(250, 750), seeds=(0, 3), **settings):
    return predict_volume(model, slices, levels, seeds, NOISE, "A/1", 11, **settings)


def test_every_branch_level_and_seed_is_what_the_model_says(slices):
    found = predict(Affine(), slices)
    assert set(found) == {(branch, level, seed) for branch in "cu" for level in (250, 750) for seed in (0, 3)}
    for (branch, level, seed), volume in found.items():
        assert volume.dtype == np.float32
        for s, plane in enumerate(slices.astype(np.float32)):
            field = noise(NOISE, [slice_seed(11, "A/1", s, level, seed)], (8, 6))[0, 0].numpy()
            shift = plane.mean() if branch == "c" else 5
            assert np.allclose(volume[s], 2 * plane + (level - 1) * field / 1000 + shift, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 64])
def test_never_depends_on_batches(slices, batch_size):
    expected, found = predict(Affine(), slices), predict(Affine(), slices, batch_size=batch_size)
    for key, volume in expected.items():
        assert np.allclose(found[key], volume, atol=1e-6)


def test_never_depends_on_which_levels_are_asked_for_together(slices):
    together, alone = predict(Affine(), slices), predict(Affine(), slices, levels=(750,), seeds=(3,))
    assert np.allclose(alone["c", 750, 3], together["c", 750, 3], atol=1e-6)


def test_both_branches_share_one_noise(slices):
    found = predict(Affine(), slices)
    difference = found["c", 750, 3] - found["u", 750, 3]
    assert np.allclose(difference, slices.astype(np.float32).mean((1, 2), keepdims=True) - 5, atol=1e-5)


def test_noise_differs_between_slices_levels_seeds_and_volumes(slices):
    equal = np.repeat(slices[:1], 3, axis=0)
    found = predict(Affine(), equal, levels=(400, 401))
    fields = [volume[s] for (branch, _, _), volume in found.items() if branch == "c" for s in range(3)]
    other = predict_volume(Affine(), equal, (400,), (0,), NOISE, "A/2", 11)["c", 400, 0]
    fields += list(other)
    assert all(not np.allclose(a, b, atol=0.05) for i, a in enumerate(fields) for b in fields[:i])


def test_encodes_once_and_batches_levels_together(slices):
    model = Affine(guided=False)
    assert {key[0] for key in predict(model, slices, batch_size=16)} == {"c"}
    assert model.encoded == len(slices)
    assert model.batches == [16, 4]


def test_without_condition_there_is_one_branch(slices):
    found = predict(Affine(guided=False, conditioned=False), slices, levels=(1,), seeds=(0,))
    assert np.allclose(found["c", 1, 0], 2 * slices.astype(np.float32), atol=1e-6)


def test_leaves_the_model_in_its_mode(slices):
    model = Affine()
    for mode in (True, False):
        model.train(mode)
        predict(model, slices)
        assert model.training is mode


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_the_real_model(dropout):
    torch.manual_seed(0)
    config = ModelConfig(base_width=32, width_multipliers=(1, 1), residual_blocks=1, attention_head_width=32)
    encoder = EncoderConfig(architecture="resnet18", width=8, max_pool=False)
    model = ConditionedDiffusion(config, encoder, DiffusionConfig(condition_dropout=dropout))
    for parameter in model.parameters():  # the last layers start at zero, which would hide everything before them
        nn.init.normal_(parameter, std=0.05)
    slices = np.random.default_rng(1).random((3, 16, 16)).astype(np.float32)
    arguments = (model, slices, (250, 500), (0,), NoiseConfig(), "A/1", 0)
    found, one_by_one = predict_volume(*arguments), predict_volume(*arguments, batch_size=1)
    assert {key[0] for key in found} == ({"c", "u"} if dropout else {"c"})
    for key, volume in found.items():
        assert np.isfinite(volume).all()
        assert np.allclose(volume, one_by_one[key], rtol=1e-4, atol=1e-4)
    half = predict_volume(*arguments, precision="bfloat16")["c", 250, 0]
    scale = np.abs(found["c", 250, 0]).max()
    assert 0 < np.abs(half - found["c", 250, 0]).max() < 0.1 * scale
    if dropout:
        assert not np.allclose(found["c", 250, 0], found["u", 250, 0])
