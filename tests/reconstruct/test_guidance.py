"""Conditioning strength on a real network: x0(s) from the cached c and u is what the guided network itself predicts.

The direct way mixes the network's outputs, v(s) = v_u + s (v_c - v_u), before they become x_0 (classifier-free guidance,
Ho & Salimans 2022, eq. 6), one slice, level and seed at a time.
"""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from one_volume import predict_volume
from torch import nn

from cddpm.config import DiffusionConfig, EncoderConfig, ModelConfig, NoiseConfig, ScoringConfig
from cddpm.models.cddpm import Condition, ConditionedDiffusion
from cddpm.models.diffusion import to_signed, to_unit
from cddpm.models.noise import noise
from cddpm.reconstruct import part, reconstruction
from cddpm.scoring.score import Scorer
from cddpm.seeds import seed_of

pytestmark = pytest.mark.slow

LEVELS, SEEDS, SCALES = (50, 250, 600), (0, 4), (0.0, 0.5, 1.0, 1.7, 4.0)
NOISE = NoiseConfig(kind="pyramid")
MODEL = ModelConfig(base_width=32, width_multipliers=(1, 1), residual_blocks=1, attention_head_width=32)
ENCODER = EncoderConfig(architecture="resnet18", width=8, max_pool=False)
SLICES = np.random.default_rng(1).random((2, 32, 32)).astype(np.float16)


def network(dropout: float = 0.2, conditioning: str = "cross-attention", **settings: str) -> ConditionedDiffusion:
    """A random network without zeroed layers; dropout 0 gives the same one without null condition."""
    torch.manual_seed(0)
    model = MODEL.model_copy(update={"conditioning": conditioning})
    made = ConditionedDiffusion(model, ENCODER, DiffusionConfig(condition_dropout=dropout, **settings)).eval()
    for name, parameter in sorted(made.named_parameters(), key=lambda item: item[0].startswith("null")):
        nn.init.normal_(parameter, std=1.0 if name.startswith("null") else 0.08)
    return made


def field(s: int, level: int, seed: int) -> torch.Tensor:
    return noise(NOISE, [seed_of(7, "A/0", s, level, seed)], (32, 32))


class Direct:
    """The guided predictions of a model, one slice at a time."""

    @torch.inference_mode()
    def __init__(self, model: ConditionedDiffusion) -> None:
        self.diffusion, self.outputs = model.diffusion, {}
        for s, level, seed in product(range(2), LEVELS, SEEDS):
            image, t = torch.from_numpy(SLICES[s : s + 1, None].astype(np.float32)), torch.tensor([level - 1])
            x_t = model.diffusion.q_sample(to_signed(image), t, field(s, level, seed))
            c, u = model.restore(x_t, t, model.condition(image)), model.restore(x_t, t, model.null(1))
            self.outputs[s, level, seed] = x_t, t, c, u

    def slice(self, s: int, level: int, seed: int, scale: float) -> np.ndarray:
        """(32, 32) on the scale [0, 1]."""
        x_t, t, c, u = self.outputs[s, level, seed]
        return to_unit(self.diffusion.predict_x0(u + scale * (c - u), x_t, t))[0, 0].numpy()

    def volume(self, level: int, seed: int, scale: float) -> np.ndarray:
        return np.stack([self.slice(s, level, seed, scale) for s in range(2)])

    def mean(self, levels: tuple[int, ...], scale: float) -> np.ndarray:
        """Mean over ``levels`` and all seeds, (2, 32, 32)."""
        return np.mean([self.volume(level, seed, scale) for level, seed in product(levels, SEEDS)], axis=0)


def predict(model: ConditionedDiffusion, **settings: float) -> dict[part.Key, np.ndarray]:
    return predict_volume(model, SLICES, LEVELS, SEEDS, NOISE, "A/0", 7, **settings)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"conditioning": "vector"},
        {"objective": "eps"},
        {"objective": "eps", "eps_reconstruction": "unscaled", "schedule": "linear"},
    ],
    ids=str,
)
def test_c_and_u_give_every_strength_at_every_level_and_in_their_mean(settings):
    model = network(**settings)
    found, direct = predict(model), Direct(model)
    assert relative(found["u", 250, 0], found["c", 250, 0]) > 1e-3
    for scale in SCALES:
        guided = {key[1:]: u + scale * (found["c", *key[1:]] - u) for key, u in found.items() if key[0] == "u"}
        for (level, seed), volume in guided.items():
            assert relative(volume, direct.volume(level, seed, scale)) < 1e-4, (scale, level, seed)
        for levels in (LEVELS, LEVELS[1:], LEVELS[:1]):
            mean = np.mean([guided[level, seed] for level in levels for seed in SEEDS], axis=0)
            assert relative(mean, direct.mean(levels, scale)) < 1e-4, (scale, levels)


class OneVolume:
    """The store of one volume, all of it brain, with a lesion of one pixel."""

    volumes = (type("Record", (), {"id": "A/0", "dataset": "A"}),)

    def image(self, v: int) -> np.ndarray:
        return SLICES

    def mask(self, v: int) -> np.ndarray:
        return np.ones(SLICES.shape, np.uint8)

    def segmentation(self, v: int) -> np.ndarray:
        return (np.arange(SLICES.size) == 100).astype(np.uint8).reshape(SLICES.shape)

    def ignored(self, v: int) -> np.ndarray:
        return np.empty(0, np.int64)


def test_what_scoring_reads_from_the_float16_cache_is_the_guided_prediction(tmp_path: Path):
    model, path = network(), tmp_path / "cache"
    part.write_part(reconstruction.parts_directory(path), "A/0", predict(model))
    reconstruction.finish(path, ["A/0"], "cache", {"volumes": ["A/0"]})
    direct = Direct(model)
    scorer = Scorer(OneVolume(), reconstruction.Reconstruction.open(path), {"A": [0]})
    for scale in SCALES:
        for levels in (LEVELS, LEVELS[:2]):
            found = scorer.reconstruction(0, ScoringConfig(guidance_scale=scale, noise_levels=levels))
            # c and d each carry the rounding of float16, 2^-11; d counts |s - 1| times.
            assert relative(found, direct.mean(levels, scale)) < (1 + abs(scale - 1)) * 2**-10, (scale, levels)


@pytest.mark.parametrize("conditioning", ["vector", "cross-attention"])
@torch.inference_mode()
def test_without_dropout_and_scales_the_prediction_is_the_plain_one_bit_for_bit(conditioning):
    plain, dropping = network(0.0, conditioning), network(0.2, conditioning)
    found, other = predict(plain, embedding_scale=1.0), predict(dropping, embedding_scale=1.0)
    images = torch.from_numpy(SLICES[:, None].astype(np.float32))
    for level in LEVELS:
        for seed in SEEDS:
            t = torch.full((2,), level - 1)
            x_t = plain.diffusion.q_sample(to_signed(images), t, torch.cat([field(s, level, seed) for s in range(2)]))
            last = plain.encoder.forward_features(images)[-1]
            tokens = last.flatten(2).transpose(1, 2).contiguous() if conditioning == "cross-attention" else None
            expected = to_unit(plain.unet(x_t, t, plain.encoder(images), tokens))[:, 0].numpy()
            assert relative(found["c", level, seed], expected) < 1e-5  # batches of other sizes round differently
            assert np.array_equal(found["c", level, seed], other["c", level, seed])
            alone = predict_volume(plain, SLICES, (level,), (seed,), NOISE, "A/0", 7, 2)["c", level, seed]
            assert np.array_equal(alone, expected)
    assert {key[0] for key in found} == {"c"}


@torch.inference_mode()
def test_embedding_scale_multiplies_vector_and_tokens_and_no_more():
    model = network()
    images = torch.from_numpy(SLICES[:, None].astype(np.float32))
    given = model.condition(images)
    scaled = Condition(given.vector * 2.5, given.tokens * 2.5)
    found, plain = predict(model, embedding_scale=2.5), predict(model)
    for (branch, level, seed), volume in found.items():
        t, fields = torch.full((2,), level - 1), torch.cat([field(s, level, seed) for s in range(2)])
        condition = scaled if branch == "c" else model.null(2)
        expected = model.predict_x0(images, t, fields, condition)[:, 0].numpy()
        assert relative(volume, expected) < 1e-5
    assert relative(found["c", 250, 0], plain["c", 250, 0]) > 1e-3
