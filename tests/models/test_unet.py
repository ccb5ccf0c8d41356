"""The U-Net: identity at the start, independence of slices, clear refusals, and parity with the reference arrays."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from reference_settings import Arrays, load_arrays, unet, weights
from torch import nn

from cddpm.config import ModelConfig
from cddpm.errors import ConfigError
from cddpm.models.unet import AttentionBlock, CrossAttentionBlock, ResidualBlock, UNet, timestep_embedding

Near = Callable[..., None]

SMALL = ModelConfig(base_width=32, width_multipliers=(1, 2), residual_blocks=1)
ATTENDING = SMALL.model_copy(update={"conditioning": "cross-attention", "attention_head_width": 32})


def small_unet(model: ModelConfig = SMALL, token_channels: int | None = None) -> UNet:
    """A U-Net with every weight drawn anew, the zeros too."""
    torch.manual_seed(0)
    network = UNet(model, token_channels=token_channels).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.1)
    return network


def test_timestep_embedding_by_hand():
    found = timestep_embedding(torch.tensor([0, 100]), 4)
    expected = [[1, 1, 0, 0], [np.cos(100), np.cos(1), np.sin(100), np.sin(1)]]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32), rtol=0, atol=1e-6)


def test_blocks_start_as_the_identity_and_the_network_as_zero():
    x = torch.randn(2, 64, 8, 8)
    torch.testing.assert_close(ResidualBlock(64, 64, 16, 0.0)(x, torch.randn(2, 16)), x)
    torch.testing.assert_close(AttentionBlock(64, 32)(x), x)
    assert not UNet(SMALL)(torch.randn(2, 1, 16, 16), torch.tensor([1, 2]), torch.randn(2, 128)).any()


def test_attention_of_equal_tokens_changes_all_alike_and_follows_a_permutation():
    torch.manual_seed(1)
    block = AttentionBlock(64, 32)
    torch.nn.init.normal_(block.proj_out.weight)
    x = torch.randn(1, 64, 4, 4)
    order = torch.randperm(16)
    permuted = x.flatten(2)[:, :, order].view_as(x)
    torch.testing.assert_close(block(permuted).flatten(2), block(x).flatten(2)[:, :, order], rtol=1e-4, atol=1e-4)


def cross_attention() -> CrossAttentionBlock:
    """64 channels in two heads, tokens of 6 channels, no weight zero."""
    torch.manual_seed(2)
    block = CrossAttentionBlock(64, 6, 32)
    torch.nn.init.normal_(block.proj_out.weight, std=0.2)
    return block


def test_cross_attention_starts_as_the_identity():
    x = torch.randn(2, 64, 4, 4)
    assert torch.equal(CrossAttentionBlock(64, 6, 32)(x, torch.randn(2, 9, 6)), x)


def test_cross_attention_is_the_softmax_over_tokens():
    block, x, tokens = cross_attention(), torch.randn(1, 64, 2, 3), torch.randn(1, 5, 6)
    expected = x.clone()
    pixels = block.norm(x)[0].flatten(1).T
    key, value = block.key_value(tokens[0]).split(64, dim=1)
    mixed = torch.empty(6, 64)
    for head in (slice(0, 32), slice(32, 64)):
        weight = (block.query(pixels)[:, head] @ key[:, head].T / 32**0.5).softmax(1)
        mixed[:, head] = weight @ value[:, head]
    expected += block.proj_out(mixed).T.view(1, 64, 2, 3)
    torch.testing.assert_close(block(x, tokens), expected, rtol=1e-4, atol=1e-5)


def test_cross_attention_knows_no_order_of_tokens_and_equal_ones_count_once():
    block, x, tokens = cross_attention(), torch.randn(2, 64, 4, 4), torch.randn(2, 5, 6)
    torch.testing.assert_close(block(x, tokens[:, torch.randperm(5)]), block(x, tokens), rtol=1e-4, atol=1e-5)
    one = tokens[:, :1]
    torch.testing.assert_close(block(x, one.expand(-1, 9, -1)), block(x, one), rtol=1e-4, atol=1e-5)
    assert (block(x, tokens) - block(x, one)).abs().max() > 1e-2


def test_an_untrained_cross_attention_is_the_vector_network_and_keeps_its_names():
    vector, attending = UNet(SMALL), UNet(ATTENDING, token_channels=6)
    kept = attending.load_state_dict(vector.state_dict(), strict=False)
    assert kept.unexpected_keys == []
    assert {name.rpartition(".cross.")[0] for name in kept.missing_keys} == {"middle_block"}
    torch.nn.init.normal_(vector.out[2].weight)
    attending.out.load_state_dict(vector.out.state_dict())
    x, t, condition = torch.randn(2, 1, 16, 16), torch.tensor([1, 900]), torch.randn(2, 128)
    assert torch.equal(attending(x, t, condition, torch.randn(2, 4, 6)), vector(x, t, condition))


def test_tokens_matter_to_their_own_slice_alone():
    network = small_unet(ATTENDING, token_channels=6)
    x, t, condition, tokens = (
        torch.randn(2, 1, 16, 16),
        torch.tensor([1, 900]),
        torch.randn(2, 128),
        torch.randn(2, 4, 6),
    )
    before = network(x, t, condition, tokens)
    tokens[1] = torch.randn(4, 6)
    change = (network(x, t, condition, tokens) - before).abs().flatten(1).amax(1)
    assert change[0] < 1e-5
    assert change[1] > 1e-3


def test_missing_or_unwanted_tokens_are_refused():
    x, t, condition, tokens = torch.randn(1, 1, 8, 8), torch.tensor([3]), torch.randn(1, 128), torch.randn(1, 4, 6)
    with pytest.raises(ValueError, match=r"tokens: got none, but model\.conditioning is 'cross-attention'"):
        UNet(ATTENDING, token_channels=6)(x, t, condition)
    with pytest.raises(ValueError, match=r"tokens: got some of shape \(1, 4, 6\), but model\.conditioning is 'vector'"):
        UNet(SMALL)(x, t, condition, tokens)
    with pytest.raises(ValueError, match=r"token_channels: None, but model\.conditioning is 'cross-attention'"):
        UNet(ATTENDING)
    with pytest.raises(ValueError, match=r"token_channels: 6, but model\.conditioning is 'vector'"):
        UNet(SMALL, token_channels=6)


@pytest.mark.parametrize("shape", [(16, 16), (8, 20)])
def test_slices_do_not_see_each_other(shape):
    network = small_unet()
    x, t, condition = torch.randn(3, 1, *shape), torch.tensor([0, 500, 999]), torch.randn(3, 128)
    together = network(x, t, condition)
    alone = torch.cat([network(x[i : i + 1], t[i : i + 1], condition[i : i + 1]) for i in range(3)])
    assert together.shape == x.shape
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_noise_level_and_condition_both_matter():
    network = small_unet()
    x, t, condition = torch.randn(1, 1, 16, 16), torch.tensor([500]), torch.randn(1, 128)
    out = network(x, t, condition)
    assert (network(x, t - 400, condition) - out).abs().max() > 1e-3
    assert (network(x, t, -condition) - out).abs().max() > 1e-3


def test_condition_width_is_free():
    network = UNet(SMALL.model_copy(update={"condition_width": 7}))
    assert network(torch.randn(1, 1, 8, 8), torch.tensor([3]), torch.randn(1, 7)).shape == (1, 1, 8, 8)


def test_a_missing_or_unwanted_condition_is_refused():
    x, t = torch.randn(1, 1, 8, 8), torch.tensor([3])
    with pytest.raises(ValueError, match=r"got none, but model\.conditioned is True"):
        UNet(SMALL)(x, t)
    with pytest.raises(ValueError, match=r"got one of shape \(1, 128\), but model\.conditioned is False"):
        UNet(SMALL.model_copy(update={"conditioned": False}))(x, t, torch.randn(1, 128))


def test_slices_that_cannot_be_halved_are_refused():
    with pytest.raises(ValueError, match="multiples of 2"):
        UNet(SMALL)(torch.randn(1, 1, 8, 9), torch.tensor([3]), torch.randn(1, 128))


def test_heads_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ConfigError, match=r"attention_head_width: 48: allowed are divisors of the 64 channels"):
        UNet(SMALL.model_copy(update={"attention_head_width": 48}))


@pytest.mark.slow
def test_bfloat16_autocast_stays_near_float32():
    network = small_unet()
    x, t, condition = torch.randn(2, 1, 16, 16), torch.tensor([10, 900]), torch.randn(2, 128)
    exact = network(x, t, condition)
    with torch.autocast("cpu", torch.bfloat16):
        found = network(x, t, condition)
    assert found.dtype == torch.float32
    assert (found - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("name", ["unet_small", "unet_uncond_small"])
def test_output_loss_and_gradients_equal_the_reference(name, reference_dir: Path, near: Near):
    arrays, network = load_arrays(reference_dir, f"{name}_io"), unet(weights(reference_dir, name))
    x, t = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["timesteps"])
    out = network(x, t, torch.from_numpy(arrays["cond"]) if network.model.conditioned else None)
    near(f"{name}: output", out, arrays["out"])
    near(f"{name}: sinusoids", timestep_embedding(t, network.model.base_width), arrays["temb"])
    loss = (out - torch.from_numpy(arrays["target"])).abs().mean()
    near(f"{name}: loss", loss, arrays["l1_loss"])
    loss.backward()
    found = {key: parameter.grad.double().norm().item() for key, parameter in network.named_parameters()}
    assert sorted(found) == sorted(arrays["grad_names"])
    # A bias in front of a normalisation with one channel per group has no gradient but rounding, below 1e-7 of the largest.
    floor = 1e-3 * float(arrays["grad_l2"].max())
    for key, norm in zip(arrays["grad_names"], arrays["grad_l2"], strict=True):
        near(f"{name}: gradients", found[key], norm, floor=floor)


def passes(arrays: Arrays, conditioned: bool) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """Noise levels and conditions of the pass that the inner arrays come from.

    That may be another than the one of "out": with the conditions exchanged, or at noise levels 100 higher.
    """
    t, condition = torch.from_numpy(arrays["timesteps"]), torch.from_numpy(arrays["cond"]) if conditioned else None
    yield t, condition
    if condition is None:
        yield t + 100, None
    else:
        yield t, condition.flip(0)
        yield t, condition.roll(1, 0)


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("name", ["unet_small", "unet_uncond_small"])
def test_embedding_and_middle_block_equal_the_reference(name, reference_dir: Path, near: Near):
    arrays, network = load_arrays(reference_dir, f"{name}_io"), unet(weights(reference_dir, name))

    def distance(inputs: tuple[torch.Tensor, torch.Tensor | None]) -> float:
        return float((network.embed(*inputs) - torch.from_numpy(arrays["emb"])).abs().max())

    with torch.no_grad():
        t, condition = min(passes(arrays, network.model.conditioned), key=distance)
    seen = []
    network.middle_block.register_forward_hook(lambda module, inputs, output: seen.append(output))
    network(torch.from_numpy(arrays["x"]), t, condition)
    near(f"{name}: embedding", network.embed(t, condition), arrays["emb"])
    near(f"{name}: middle block", seen[0], arrays["mid_out"])


@pytest.mark.parity
def test_attention_block_equals_the_reference(reference_dir: Path, near: Near):
    arrays = load_arrays(reference_dir, "attention_block_io")
    block = AttentionBlock(arrays["x"].shape[1], arrays["x"].shape[1] // int(arrays["num_heads"]))
    assert block.heads == arrays["num_heads"]
    block.load_state_dict({key[6:]: torch.from_numpy(arrays[key]) for key in arrays if key.startswith("param/")})
    near("attention block", block(torch.from_numpy(arrays["x"])), arrays["out"])


@pytest.mark.parametrize(("width", "groups"), [(8, {8}), (16, {8, 32}), (24, {8}), (32, {32}), (128, {32})])
def test_norms_are_the_published_ones_where_the_width_allows_it(width: int, groups: set[int]) -> None:
    network = UNet(ModelConfig(base_width=width, width_multipliers=(1, 1), residual_blocks=1, attention_head_width=8))
    norms = [module for module in network.modules() if isinstance(module, nn.GroupNorm)]
    assert {norm.num_groups for norm in norms} == groups  # inputs of 16 + 16 channels have 32
    assert all(norm.num_groups == (8 if norm.num_channels % 32 else 32) for norm in norms)


def test_a_width_that_no_norm_divides_is_refused() -> None:
    with pytest.raises(ValidationError, match="multiple of 8"):
        ModelConfig(base_width=12)
