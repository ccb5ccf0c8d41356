"""The condition encoder: structure, laws, and parity with arrays of the published network."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from reference_settings import Arrays, encoder, load_arrays, weights
from torch import nn

from cddpm.config import EncoderConfig
from cddpm.models.encoder import DropPath, ResNetEncoder, ResNetTrunk, draw_paths, keep_paths
from cddpm.models.sparse import VisibleSites

Near = Callable[..., None]


def small(**settings: object) -> ResNetEncoder:
    config = {"architecture": "resnet18", "width": 8} | settings
    return ResNetEncoder(EncoderConfig.model_validate(config), 16)


def drop_probabilities(encoder: ResNetTrunk) -> list[float]:
    return [module.p for module in encoder.modules() if isinstance(module, DropPath)]


# Parameters of the published ImageNet networks, less the two input channels and the 1000 classes they have more.
@pytest.mark.parametrize(
    ("architecture", "published"),
    [("resnet18", 11_689_512), ("resnet34", 21_797_672), ("resnet50", 25_557_032), ("resnet101", 44_549_160)],
)
def test_parameter_counts_are_the_published_ones(architecture: str, published: int) -> None:
    with torch.device("meta"):
        encoder = ResNetEncoder(EncoderConfig.model_validate({"architecture": architecture}), 128)
    count = sum(parameter.numel() for parameter in encoder.parameters())
    features = encoder.channels[-1]
    assert count == published - 2 * 64 * 49 - 1001 * features + features * 128 + 128 - (1000 - features)


@pytest.mark.parametrize(("max_pool", "sizes"), [(True, [16, 8, 4, 2]), (False, [32, 16, 8, 4])])
def test_maps_and_total_downsampling(max_pool: bool, sizes: list[int]) -> None:
    encoder = small(max_pool=max_pool, architecture="resnet50")
    maps = encoder.forward_features(torch.rand(2, 1, 64, 64))
    assert [x.shape[2] for x in maps] == sizes
    assert [x.shape[1] for x in maps] == encoder.channels == [32, 64, 128, 256]
    assert 64 // sizes[-1] == encoder.config.downsampling


def test_batch_is_slice_by_slice() -> None:
    encoder = small().eval()
    x = torch.rand(3, 1, 64, 64)
    single = torch.cat([encoder(x[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(encoder(x), single, atol=1e-5, rtol=1e-4)


def test_stochastic_depth_rises_linearly() -> None:
    assert drop_probabilities(small(drop_path=0.7)) == pytest.approx([0.1 * i for i in range(8)])
    assert drop_probabilities(small(architecture="resnet50", drop_path=0.3)) == pytest.approx(
        [0.02 * i for i in range(16)]
    )


def test_drop_path_keeps_the_expectation_and_whole_samples() -> None:
    torch.manual_seed(0)
    y = DropPath(0.25)(torch.ones(4000, 2, 3))
    assert y.unique().tolist() == pytest.approx([0, 4 / 3])
    assert torch.equal(y.amin((1, 2)), y.amax((1, 2)))
    assert y.mean() == pytest.approx(1, abs=0.03)
    assert torch.equal(DropPath(0.25).eval()(y), y)


def test_dropped_branches_are_those_of_the_sample_in_every_batch() -> None:
    layers, seeds = nn.Sequential(DropPath(0.5), DropPath(0.0), DropPath(0.25)), list(range(4000))
    keep_paths(layers, draw_paths(layers, seeds))
    ones = torch.ones(len(seeds), 1, 1, 1)
    whole = [layer(ones).flatten() for layer in layers]
    assert [float(kept.mean()) for kept in whole] == pytest.approx([1, 1, 1], abs=0.06)
    assert torch.equal(whole[1], torch.ones(len(seeds)))
    both = ((whole[0] > 0) & (whole[2] > 0)).double().mean()
    assert float(both) == pytest.approx(0.5 * 0.75, abs=0.03)  # layers are drawn independently
    for rank in range(2):
        keep_paths(layers, draw_paths(layers, seeds[rank::2]))
        part = [layer(ones[rank::2]).flatten() for layer in layers]
        assert all(torch.equal(a, b[rank::2]) for a, b in zip(part, whole, strict=True))


def test_drawn_paths_hold_for_one_step() -> None:
    layer = DropPath(0.5)
    keep_paths(layer, draw_paths(layer, [1, 2]))
    layer(torch.ones(2, 1))
    assert layer(torch.ones(5, 1)).shape == (5, 1)  # another batch, drawn at random


def test_every_block_starts_as_its_shortcut() -> None:
    encoder = small()
    x = torch.rand(2, 8, 16, 16)
    assert torch.equal(encoder.layer1[0](x), x)


def test_hidden_patches_have_no_influence() -> None:
    encoder = small().eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    active = torch.zeros(1, 1, 2, 2, dtype=torch.bool)
    active[0, 0, 0, 1] = True
    visible, x = VisibleSites(active), torch.rand(1, 1, 64, 64)
    other = visible.hide(x) + ~visible.mask(64, 64) * torch.rand(1, 1, 64, 64)
    for a, b in zip(
        encoder.forward_features(visible.hide(x), visible),
        encoder.forward_features(visible.hide(other), visible),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
        assert torch.equal(a, visible.hide(a))
        assert a.any()


def test_all_visible_is_the_dense_network() -> None:
    encoder, x = small().eval(), torch.rand(2, 1, 64, 64)
    visible = VisibleSites(torch.ones(2, 1, 2, 2, dtype=torch.bool))
    for a, b in zip(encoder.forward_features(x), encoder.forward_features(x, visible), strict=True):
        torch.testing.assert_close(a, b)


def test_bfloat16_autocast_runs_sparse_and_dense() -> None:
    encoder, x = small(), torch.rand(2, 1, 64, 64)
    visible = VisibleSites(torch.tensor([[[[True, False], [True, False]]]]).repeat(2, 1, 1, 1))
    with torch.autocast("cpu", torch.bfloat16):
        assert encoder(x).isfinite().all()
        assert encoder.forward_features(x, visible)[-1].isfinite().all()


@pytest.fixture(scope="module")
def arrays(reference_dir: Path) -> Arrays:
    return load_arrays(reference_dir, "encoder_small_io")


@pytest.fixture
def published(reference_dir: Path) -> ResNetEncoder:
    return encoder(weights(reference_dir, "encoder_small"))


@pytest.mark.slow
@pytest.mark.parity
def test_parity_in_evaluation(published: ResNetEncoder, arrays: Arrays, near: Near) -> None:
    published.eval()
    x = torch.tensor(arrays["x"])
    near("encoder: features, evaluation", published(x), arrays["features_eval"])
    maps = published.forward_features(x)
    near("encoder: last map, evaluation", maps[3], arrays["layer4_eval"])
    for i, layer in enumerate(maps, start=1):
        near("encoder: mean and spread of maps", torch.stack([layer.mean(), layer.std()]), arrays[f"layer{i}_mean_std"])


@pytest.mark.slow
@pytest.mark.parity
def test_parity_in_training(published: ResNetEncoder, arrays: Arrays, near: Near) -> None:
    near("encoder: features, training", published(torch.tensor(arrays["x"])), arrays["features_train_nodrop"])
    found = {f"after_train/encoder.{name}": buffer for name, buffer in published.named_buffers()}
    assert sorted(found) == sorted(name for name in arrays if name.startswith("after_train/"))
    for name, buffer in found.items():
        near("encoder: batch norm buffers", buffer, arrays[name])


@pytest.mark.slow
@pytest.mark.parity
def test_parity_of_stochastic_depth(reference_dir: Path, arrays: Arrays) -> None:
    last = float(arrays["droppath_probs"][-1])
    network = encoder(weights(reference_dir, "encoder_small"), drop_path=last)
    assert drop_probabilities(network)[1:] == pytest.approx(arrays["droppath_probs"].tolist())
