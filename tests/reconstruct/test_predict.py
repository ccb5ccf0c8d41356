"""One-step prediction of a volume: laws on a model whose answer can be written down, then on the real one."""

import numpy as np
import pytest
import torch
from one_volume import predict_volume
from tiny_training import tiny_config
from torch import nn

from cddpm.config import DiffusionConfig, EncoderConfig, ModelConfig, NoiseConfig, PatchConfig
from cddpm.models.cddpm import Condition, ConditionedDiffusion
from cddpm.models.noise import noise
from cddpm.models.patches import grid
from cddpm.reconstruct.predict import Manner, Networks, Request, pass_seconds, predict_volumes
from cddpm.seeds import seed_of

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

    def predict_x0(self, slices, t, noise, condition, corners=None):
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
            field = noise(NOISE, [seed_of(11, "A/1", s, level, seed)], (8, 6))[0, 0].numpy()
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
    assert model.batches == [16, 16]  # 20 rows, the last pass filled up


def test_without_condition_there_is_one_branch(slices):
    found = predict(Affine(guided=False, conditioned=False), slices, levels=(1,), seeds=(0,))
    assert np.allclose(found["c", 1, 0], 2 * slices.astype(np.float32), atol=1e-6)


def test_leaves_the_model_in_its_mode(slices):
    model = Affine()
    for mode in (True, False):
        model.train(mode)
        predict(model, slices)
        assert model.training is mode


# Several volumes in one pass


def several(count: int = 4) -> list[Request]:
    """Volumes of other lengths, of which other levels and seeds are wanted; of one, none."""
    draw = np.random.default_rng(3)
    wanted = [((250, 0), (750, 3)), ((250, 0),), (), ((1, 0), (2, 0), (3, 0))]
    return [Request(f"A/{i}", draw.random((3 + i, 16, 16)).astype(np.float16), wanted[i % 4]) for i in range(count)]


def test_volumes_and_levels_share_passes():
    model, requests = Affine(), several()
    found = list(predict_volumes(model, iter(requests), Manner(NOISE, 11, batch_size=5)))
    assert [request.key for request, _ in found] == ["A/0", "A/1", "A/2", "A/3"]
    rows = sum(len(request.slices) * len(request.wanted) for request in requests)
    assert model.batches == [5] * (2 * -(-rows // 5))  # two branches
    assert model.encoded == sum(len(request.slices) for request in requests)
    for request, arrays in found:
        assert set(arrays) == {(branch, *step) for branch in "cu" for step in request.wanted}


def test_volumes_are_taken_when_there_is_room():
    taken, finished = [], []

    def requests():
        for request in several(8):
            taken.append(request.key)
            yield request

    for request, _ in predict_volumes(Affine(), requests(), Manner(NOISE, 11, batch_size=4)):
        finished.append(request.key)
        assert len(taken) <= len(finished) + 2
        assert not torch.is_inference_mode_enabled()  # the caller's own affair
    assert finished == taken


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "overlap", "volumes"),
    [
        ("float32", None, 4),
        ("float32", 4, 4),
        # emulated on most CPUs
        *(pytest.param("bfloat16", overlap, 2, marks=pytest.mark.nightly) for overlap in (None, 4)),
    ],
)
def test_company_changes_no_bit(precision, overlap, volumes):
    """The law on which the cache rests: whatever is predicted beside it, a volume at a level is the same."""
    patched = {} if overlap is None else {"patch": {"enabled": True, "size": 8, "overlap": overlap}}
    model = real(condition_dropout=0.2, **patched)
    patch = PatchConfig() if overlap is None else boxes(8, overlap)
    manner = Manner(NOISE, 11, batch_size=6, precision=precision, patch=patch, embedding_scale=1.5)
    together = {r.key: arrays for r, arrays in predict_volumes(model, several(volumes), manner)}
    for request in several(volumes):
        for step in request.wanted:
            alone = Request(request.key, request.slices, (step,))
            ((_, arrays),) = predict_volumes(model, [alone], manner)
            for branch in "cu":
                assert np.array_equal(arrays[branch, *step], together[request.key][branch, *step])


# One field for all slices of a volume


def test_shared_noise_is_one_rounded_field_per_level_and_seed(slices):
    shared, equal = NOISE.model_copy(update={"shared": True}), np.zeros_like(slices)
    found = predict_volume(Plain(lambda s, noise, corners: noise), equal, (250, 750), (0, 3), shared, "A/1", 11)
    for volume in found.values():
        assert np.array_equal(volume, np.repeat(volume[:1], len(slices), axis=0))
        assert np.array_equal(volume, volume.astype(np.float16))
    fields = [volume[0] for volume in found.values()]
    assert all(not np.allclose(a, b, atol=0.05) for i, a in enumerate(fields) for b in fields[:i])
    other = predict_volume(Plain(lambda s, noise, corners: noise), equal, (250,), (0,), shared, "A/2", 11)
    assert not np.allclose(other["c", 250, 0][0], fields[0], atol=0.05)


# Strength of the condition


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
def test_the_embedding_scale_multiplies_the_condition_and_nothing_else(slices, scale):
    plain, scaled, model = predict(Affine(), slices), None, Affine()
    scaled = predict(model, slices, embedding_scale=scale)
    shift = (scale - 1) * slices.astype(np.float32).mean((1, 2), keepdims=True)
    for (branch, level, seed), volume in scaled.items():
        expected = plain[branch, level, seed] + (shift if branch == "c" else 0)
        assert np.allclose(volume, expected, atol=1e-5)
        if branch == "u" or scale == 1:
            assert np.array_equal(volume, plain[branch, level, seed])
    assert model.encoded == len(slices)


@pytest.mark.parametrize("guided", [False, True])
def test_a_guide_predicts_the_other_branch_from_the_same_noise(slices, guided):
    guide = Plain(lambda s, noise, corners: noise)
    found = predict(Affine(guided=guided), slices, guide=guide)
    alone = predict(guide, slices)
    plain = predict(Affine(guided=guided), slices)
    for level, seed in ((250, 0), (250, 3), (750, 0), (750, 3)):
        assert np.array_equal(found["u", level, seed], alone["c", level, seed])
        assert np.array_equal(found["c", level, seed], plain["c", level, seed])
    assert {branch for branch, _, _ in predict(Affine(), slices, guide=guide, unconditional=False)} == {"c"}


def test_a_guide_is_put_back_into_its_mode(slices):
    guide = Plain(lambda s, noise, corners: s * (2 if guide.training else 1)).train()
    assert np.array_equal(predict(Affine(), slices, guide=guide)["u", 250, 0], slices.astype(np.float32))
    assert guide.training


# Boxes


class Plain(nn.Module):
    """An unconditioned model that answers what it is told to."""

    def __init__(self, answer) -> None:
        super().__init__()
        self.answer, self.batches = answer, []

    def condition(self, slices):
        return None

    def predict_x0(self, slices, t, noise, condition, corners=None):
        assert condition is None
        self.batches.append(len(slices))
        return self.answer(slices, noise, corners)


def boxes(size: int, overlap: int = 0) -> PatchConfig:
    return PatchConfig(enabled=True, size=size, overlap=overlap)


@pytest.mark.parametrize(("size", "overlap"), [(6, 0), (3, 0), (3, 2), (4, 1), (5, 0), (1, 0)])
def test_stitching_the_right_answer_gives_it_back(slices, size, overlap):
    found = predict(Plain(lambda s, noise, corners: s), slices, patch=boxes(size, overlap))
    for volume in found.values():
        assert np.allclose(volume, slices.astype(np.float32), atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_boxes_of_a_slice_see_one_noise_realisation(slices, batch_size):
    whole = predict(Plain(lambda s, noise, corners: noise), slices)
    found = predict(Plain(lambda s, noise, corners: noise), slices, patch=boxes(3), batch_size=batch_size)
    for key, volume in whole.items():
        assert np.array_equal(found[key], volume)


def test_each_box_counts_where_it_lies_and_overlaps_are_averaged():
    """A slice of 5 columns under boxes of 3 at 0 and 2: each answers with its own number, the middle column with both."""
    model = Plain(lambda s, noise, corners: (10.0 * corners[:, 1] + corners[:, 0]).view(-1, 1, 1, 1).expand_as(s))
    found = predict(model, np.zeros((2, 3, 5), np.float32), (1,), (0,), patch=boxes(3, 1))["c", 1, 0]
    assert np.array_equal(found, np.broadcast_to(np.float32([0, 0, 10, 20, 20]), (2, 3, 5)))


def test_a_pixel_of_one_box_depends_on_that_box_alone():
    def answer(s, noise, corners):
        first = (corners == 0).all(1).view(-1, 1, 1, 1)
        return torch.where(first, s + 100, s)

    slices = np.random.default_rng(0).random((2, 6, 6)).astype(np.float32)
    found = predict(Plain(answer), slices, (1,), (0,), patch=boxes(4, 2))["c", 1, 0]  # boxes at 0 and 2
    changed = found - slices
    assert np.allclose(changed[:, :2, :2], 100, atol=1e-4)  # in the first alone
    assert np.allclose(changed[:, :2, 2:4], 50, atol=1e-4)  # in two
    assert np.allclose(changed[:, 2:4, 2:4], 25, atol=1e-4)  # in four
    assert np.array_equal(found[:, 4:], slices[:, 4:])


def test_memory_is_bounded_by_the_batch(slices):
    model = Plain(lambda s, noise, corners: s)
    predict(model, slices, patch=boxes(3), batch_size=16)
    rows = 5 * 2 * 2 * len(grid((8, 6), (3, 3)))
    assert model.batches == [16] * (rows // 16 + (rows % 16 > 0))


def real(**diffusion) -> ConditionedDiffusion:
    torch.manual_seed(0)
    config = ModelConfig(base_width=32, width_multipliers=(1,), residual_blocks=1, attention_head_width=32)
    encoder = EncoderConfig(architecture="resnet18", width=8, max_pool=False)
    model = ConditionedDiffusion(config, encoder, DiffusionConfig.model_validate(diffusion))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05)
    return model


@pytest.mark.slow
def test_one_box_of_the_whole_slice_changes_no_bit():
    slices, patch = np.random.default_rng(1).random((3, 16, 16)).astype(np.float32), boxes(16)
    model = real(condition_dropout=0.2, patch={"enabled": True, "size": 16})
    whole, found = predict(model, slices), predict(model, slices, patch=patch)
    assert whole.keys() == found.keys()
    assert all(np.array_equal(found[key], volume) for key, volume in whole.items())


@pytest.mark.slow
@pytest.mark.parametrize("overlap", [0, 4])
def test_the_real_patched_model_never_depends_on_batches(overlap):
    slices, patch = np.random.default_rng(1).random((3, 16, 16)).astype(np.float32), boxes(8, overlap)
    model = real(condition_dropout=0.2, patch={"enabled": True, "size": 8, "overlap": overlap})
    found, one_by_one = (predict(model, slices, patch=patch, batch_size=size) for size in (64, 1))
    scale = max(np.abs(volume).max() for volume in found.values())
    assert all(np.abs(found[key] - one_by_one[key]).max() < 1e-5 * scale for key in found)
    assert not np.allclose(found["c", 750, 0], predict(model, slices)["c", 750, 0], atol=1e-3 * scale)


# The real model


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [pytest.param(0.0, marks=pytest.mark.nightly), 0.2])
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


def test_a_pass_takes_time():
    seconds = pass_seconds(Networks(tiny_config(), Affine()), np.zeros((3, 16, 16), np.float16))
    assert isinstance(seconds, float)
    assert 0 < seconds < 30
