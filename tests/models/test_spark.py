"""SparK: what is hidden cannot be seen, and parity with arrays of the published network."""

import copy
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from own_reference.networks import give_paths, spark_step, with_flags
from reference_settings import Arrays, load_arrays, spark, spark_state
from torch import Tensor, nn

from cddpm.config import EncoderConfig
from cddpm.errors import ConfigError
from cddpm.models.encoder import ResNetEncoder
from cddpm.models.spark import SparK, draw_masks, seeded_masks
from cddpm.models.sparse import VisibleSites

Near = Callable[..., None]


def small(max_pool: bool = True, **settings: Any) -> SparK:
    config = EncoderConfig(architecture="resnet18", width=8, max_pool=max_pool)
    return SparK(config, 32, settings.pop("mask_ratio", 0.65), **settings)


def randomise(model: nn.Module) -> None:
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)


def pixels(active: Tensor, patch: int) -> Tensor:
    return active.repeat_interleave(patch, 2).repeat_interleave(patch, 3)


@pytest.mark.parametrize(("max_pool", "shape"), [(True, (64, 96)), (False, (48, 32))])
def test_shapes_follow_the_input_and_every_parameter_learns(max_pool: bool, shape: tuple[int, int]) -> None:
    model = small(max_pool)
    x = torch.rand(2, 1, *shape)
    grid = model.grid(x)
    active = draw_masks(2, grid, model.visible_patches(grid))
    assert model.reconstruct(x, active).shape == x.shape
    model(x, active).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_reconstruction_does_not_see_hidden_patches() -> None:
    model = small()
    randomise(model)
    x, active = torch.rand(2, 1, 96, 96), draw_masks(2, (3, 3), 3)
    other = torch.where(pixels(active, 32), x, torch.rand_like(x))
    torch.testing.assert_close(model.reconstruct(other, active), model.reconstruct(x, active))
    shifted = x + 0.1 * pixels(active, 32)
    assert not torch.allclose(model.reconstruct(shifted, active), model.reconstruct(x, active))


def test_loss_counts_hidden_patches_only() -> None:
    model, x = small(), torch.zeros(1, 1, 64, 64)
    active = torch.tensor([[[[True, False], [False, False]]]])
    rec = torch.full_like(x, 2.0)
    rec[:, :, :32, :32] = 100.0
    assert model.reconstruction_loss(rec, x, active) == pytest.approx(4.0)
    assert small(loss="l1").reconstruction_loss(rec, x, active) == pytest.approx(2.0)
    assert small(dense_loss=True).reconstruction_loss(rec, x, active) == pytest.approx((3 * 4 + 10_000) / 4)


def test_patch_norm_ignores_brightness_and_contrast_of_a_patch() -> None:
    model, x, rec = small(patch_norm=True), torch.rand(1, 1, 64, 64), torch.rand(1, 1, 64, 64)
    active = draw_masks(1, (2, 2), 1)
    loss = model.reconstruction_loss(rec, x, active)
    torch.testing.assert_close(model.reconstruction_loss(rec, 3 * x + 1, active), loss, rtol=1e-3, atol=0)


@pytest.mark.parametrize(("ratio", "visible"), [(0.65, 3), (0.5, 4), (0.6, 4), (0.9, 1)])
def test_number_of_visible_patches(ratio: float, visible: int) -> None:
    assert small(mask_ratio=ratio).visible_patches((3, 3)) == visible


def test_masks_are_exact_uniform_and_from_the_generator() -> None:
    masks = draw_masks(3000, (3, 3), 3, torch.Generator().manual_seed(1))
    assert torch.equal(masks.sum((1, 2, 3)), torch.full((3000,), 3))
    torch.testing.assert_close(masks.float().mean((0, 1)), torch.full((3, 3), 1 / 3), atol=0.03, rtol=0)
    assert torch.equal(masks, draw_masks(3000, (3, 3), 3, torch.Generator().manual_seed(1)))


def test_seeded_masks_do_not_depend_on_the_batch() -> None:
    seeds = torch.tensor([5, 5 + 2**32, -5])
    masks = seeded_masks(seeds, (6, 6), 12)
    assert torch.equal(masks.sum((1, 2, 3)), torch.full((3,), 12))
    assert torch.equal(masks[[2, 0]], seeded_masks(seeds[[2, 0]], (6, 6), 12))
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) == 3


def test_loss_is_repeatable_with_a_generator() -> None:
    model, x = small().eval(), torch.rand(4, 1, 96, 96)
    randomise(model)
    first, same, other = (model(x, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first == same
    assert first != other


def test_faults_are_named() -> None:
    model = small()
    with pytest.raises(ValueError, match="50x64 pixels; a multiple of 32"):
        model(torch.rand(1, 1, 50, 64))
    with pytest.raises(ValueError, match=r"needed for these slices is \(1, 1, 2, 2\)"):
        model.reconstruct(torch.rand(1, 1, 64, 64), torch.ones(1, 1, 1, 1, dtype=torch.bool))
    with pytest.raises(ConfigError, match="keeps 0 of 4 patches"):
        small(mask_ratio=0.9)(torch.rand(1, 1, 64, 64))
    with pytest.raises(ConfigError, match="decoder_width: 48: allowed is a multiple of 32"):
        SparK(EncoderConfig(architecture="resnet18", width=8), 48, 0.65)


def test_encoder_state_is_the_encoder_but_fc() -> None:
    model = small()
    randomise(model)
    encoder = ResNetEncoder(model.trunk.config, 5)
    encoder.load_state_dict(model.encoder_state(), strict=False)
    x = torch.rand(1, 1, 64, 64)
    expected = model.eval().trunk.forward_features(x)[-1]
    assert torch.equal(encoder.eval().forward_features(x)[-1], expected)


def test_copy_learns_alone() -> None:
    model = small()
    twin = copy.deepcopy(model)
    before = model.encoder_state()
    twin(torch.rand(2, 1, 96, 96)).backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.encoder_state().items())


def test_ddp_trains_without_search_for_unused_parameters(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(small(max_pool=False, mask_ratio=0.5))
        for _ in range(2):  # the second step raises if a parameter of the first got no gradient
            model(torch.rand(2, 1, 32, 32)).backward()
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_training_lowers_the_loss() -> None:
    torch.manual_seed(0)
    model = small(max_pool=False)
    ramp = torch.linspace(0, 1, 64)
    x = (ramp[:, None] + ramp[None, :]).expand(4, 1, 64, 64) / 2
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    losses = []
    for step in range(30):
        loss = model(x, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.3 * np.mean(losses[:5])


@pytest.fixture(scope="module")
def arrays(reference_dir: Path) -> Arrays:
    return load_arrays(reference_dir, "spark_small_io")


@pytest.fixture
def published(reference_dir: Path, arrays: Arrays) -> SparK:
    return spark(spark_state(reference_dir), float(arrays["mask_ratio"]))


def images(arrays: Arrays) -> tuple[Tensor, Tensor]:
    return torch.tensor(arrays["x"]), torch.tensor(arrays["active"])


@pytest.mark.slow
@pytest.mark.parity
def test_parity_in_evaluation(published: SparK, arrays: Arrays, near: Near) -> None:
    published.eval()
    x, active = images(arrays)
    rec = published.reconstruct(x, active)
    near("SparK: reconstruction, evaluation", rec, arrays["eval_rec"])
    near("SparK: loss, evaluation", published(x, active), arrays["eval_spatial_loss"])
    near("SparK: L1 of the whole image", (rec - x).abs().mean(), arrays["eval_l1_full"])


@pytest.mark.slow
@pytest.mark.parity
def test_parity_of_feature_maps(published: SparK, arrays: Arrays, near: Near) -> None:
    x, active = images(arrays)
    visible = VisibleSites(active)
    assert visible.mask(*x.shape[2:]).sum() == arrays["eval_active_ex_sum"]
    maps = published.eval().trunk.forward_features(visible.hide(x), visible)
    for i, layer in enumerate(reversed(maps)):
        expected = arrays[f"eval_fea{i}"]
        near("SparK: sparse feature maps", layer[: len(expected)], expected)


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize(("patch_norm", "l2", "dense"), list(itertools.product((0, 1), repeat=3)))
def test_parity_of_losses(published: SparK, arrays: Arrays, near: Near, patch_norm: int, l2: int, dense: int) -> None:
    x, active = images(arrays)
    flagged = with_flags(published, patch_norm, l2, dense)
    loss = flagged.reconstruction_loss(torch.tensor(arrays["eval_rec"]), x, active)
    near("SparK: loss flags", loss, arrays[f"loss_pix{patch_norm}_l2{l2}_dense{dense}"], 1e-5)


@pytest.mark.slow
@pytest.mark.parity
def test_parity_of_masks(published: SparK, arrays: Arrays, near: Near) -> None:
    grid = (int(arrays["fmap_size"]),) * 2
    visible = published.visible_patches(grid)
    assert visible == arrays["len_keep"]
    generator = torch.Generator().manual_seed(int(arrays["mask_seed"]))
    drawn = draw_masks(len(arrays["mask_seeded"]), grid, visible, generator)
    near("SparK: masks of the seed", drawn, arrays["mask_seeded"], 0)


def chaos(single: Any, double: Any) -> float:
    """How far float32 is from float64 in a computation of ours, of the largest value.

    Few visible sites per channel at the smallest map make training in float32 chaotic, in the arrays as in ours: they may
    differ from each other by some times this. One thread instead of two is as far off.
    """
    one, other = (value.detach().double() for value in (single, double))
    found = float((one - other).abs().max() / other.abs().max().clamp_min(1e-12))
    assert found < 0.02
    return found


def compare_training(name: str, found: tuple[Tensor, Tensor], expected: np.ndarray, near: Near) -> None:
    """Float32 and float64 against the arrays."""
    allowed = max(1e-4, 3 * chaos(*found))
    for value in found:
        near(f"SparK: {name}", value, expected, allowed)


@pytest.mark.slow
@pytest.mark.parity
def test_parity_in_training(published: SparK, arrays: Arrays, near: Near, threads: int) -> None:
    single, double = (spark_step(arrays, network) for network in (published, copy.deepcopy(published).double()))
    for key, what in (("fea0", "smallest map"), ("rec", "reconstruction"), ("spatial_loss", "loss")):
        compare_training(f"{what}, training", (single[key], double[key]), arrays[f"train_nodrop_{key}"], near)


def gradients(network: SparK, arrays: Arrays, dtype: torch.dtype) -> dict[str, float]:
    """L2 norm of every parameter's gradient, computed in ``dtype``."""
    network = copy.deepcopy(network).to(dtype)
    x, active = images(arrays)
    network(x.to(dtype), active).backward()
    return {name: p.grad.double().norm().item() for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.slow
@pytest.mark.parity
def test_parity_of_gradients(published: SparK, arrays: Arrays, near: Near, threads: int) -> None:
    names, expected = arrays["grad_names"].tolist(), torch.from_numpy(arrays["grad_l2"])
    found = [gradients(published, arrays, dtype) for dtype in (torch.float32, torch.float64)]
    assert sorted(found[0]) == sorted(found[1]) == sorted(names)
    ratios = [torch.tensor([norms[name] for name in names], dtype=torch.float64) / expected for norms in found]
    compare_training("gradients", (ratios[0], ratios[1]), np.ones(len(names)), near)


@pytest.fixture
def threads() -> Iterator[int]:
    """Two computing threads, as the arrays were made with."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield 2
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parity
def test_parity_with_stochastic_depth(published: SparK, arrays: Arrays, near: Near, threads: int) -> None:
    dropping = give_paths(published, arrays)
    single, double = (spark_step(arrays, network) for network in (dropping, copy.deepcopy(dropping).double()))
    for key, what in (("rec", "reconstruction"), ("spatial_loss", "loss")):
        compare_training(f"{what}, given drops", (single[key], double[key]), arrays[f"train_drop_{key}"], near)
    stored = [name for name in arrays if name.startswith("after_train/")]
    assert sorted(stored) == sorted(name for name in single if name.startswith("after_train/"))
    for name in stored:
        compare_training("batch norm buffers", (single[name], double[name]), arrays[name], near)
