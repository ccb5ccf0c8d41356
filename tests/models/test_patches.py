"""Boxes: they cover every pixel, lie where they should, and a patched model sees and learns nothing else."""

from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cddpm.config import DiffusionConfig, EncoderConfig, ModelConfig, PatchConfig
from cddpm.models.cddpm import ConditionedDiffusion
from cddpm.models.diffusion import to_signed
from cddpm.models.patches import coverage, crop, grid, inside, random_corner, training_corner

MODEL = ModelConfig(base_width=32, width_multipliers=(1,), residual_blocks=1, attention_head_width=32)
ENCODER = EncoderConfig(architecture="resnet18", width=8, max_pool=False)
SHAPE = (16, 16)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


# Where boxes lie


@pytest.mark.parametrize("shape", [(7, 7), (16, 11), (48, 48), (96, 96), (50, 13)])
def test_the_grid_covers_every_pixel(shape: tuple[int, int]) -> None:
    for height, width in product((1, 3, 5, 7), (2, 4, 7)):
        for overlap in range(min(height, width)):
            corners = grid(shape, (height, width), overlap)
            assert coverage(corners, (height, width), shape).min() >= 1
            assert len(set(corners)) == len(corners)
            assert max(top for top, _ in corners) == shape[0] - height  # flush with the edge
            assert max(left for _, left in corners) == shape[1] - width


@pytest.mark.parametrize(
    ("length", "size", "overlap", "starts"),
    [
        (96, 48, 0, [0, 48]),
        (96, 96, 0, [0]),
        (10, 4, 0, [0, 4, 6]),
        (10, 4, 2, [0, 2, 4, 6]),
        (10, 4, 3, [0, 1, 2, 3, 4, 5, 6]),
        (9, 4, 1, [0, 3, 5]),
    ],
)
def test_the_grid_by_hand(length: int, size: int, overlap: int, starts: list[int]) -> None:
    assert grid((length, length), (size, size), overlap) == [(top, left) for top in starts for left in starts]


@pytest.mark.parametrize(("size", "overlap"), [(17, 0), (4, 4), (4, -1), (0, 0)])
def test_boxes_that_cannot_be_are_refused(size: int, overlap: int) -> None:
    with pytest.raises(ValueError, match=f"boxes of {size} pixels with overlap {overlap}: allowed is 0 <= overlap"):
        grid(SHAPE, (size, size), overlap)


def test_random_corners_are_even_over_all_places_and_decided_by_the_seed() -> None:
    found = Counter(random_corner(seed, (6, 5), (4, 2)) for seed in range(120))
    assert found == {place: 10 for place in product(range(3), range(4))}
    assert random_corner(7, SHAPE, SHAPE) == (0, 0)
    with pytest.raises(ValueError, match="allowed is up to"):
        random_corner(0, (6, 5), (7, 2))


def test_training_corners_are_those_of_their_placement() -> None:
    boxes = PatchConfig(enabled=True, size=8, overlap=2)
    corners = grid(SHAPE, (8, 8), 2)
    assert Counter(training_corner(boxes, seed, SHAPE) for seed in range(90)) == {
        c: 90 // len(corners) for c in corners
    }
    anywhere = boxes.model_copy(update={"placement": "random"})
    assert len({training_corner(anywhere, seed, SHAPE) for seed in range(81)}) == 81
    with pytest.raises(ValueError, match="patch placement: 'centre'; allowed are grid and random"):
        training_corner(boxes.model_copy(update={"placement": "centre"}), 0, SHAPE)


def test_cutting_and_marking_are_slicing() -> None:
    images, corners, size = torch.randn(3, 2, 9, 7), torch.tensor([[0, 0], [4, 2], [5, 4]]), (4, 3)
    cut, marked = crop(images, corners, size), inside(corners, size, (9, 7))
    assert cut.shape == (3, 2, 4, 3)
    assert marked.shape == (3, 1, 9, 7)
    for i, (top, left) in enumerate(corners.tolist()):
        assert torch.equal(cut[i], images[i, :, top : top + 4, left : left + 3])
        expected = torch.zeros(9, 7, dtype=torch.bool)
        expected[top : top + 4, left : left + 3] = True
        assert torch.equal(marked[i, 0], expected)


def test_gradients_reach_the_box_alone() -> None:
    images, corners = torch.zeros(2, 1, 6, 6, requires_grad=True), torch.tensor([[1, 2], [3, 0]])
    crop(images, corners, (3, 3)).sum().backward()
    assert torch.equal(images.grad > 0, inside(corners, (3, 3), (6, 6)))


def test_coverage_by_hand() -> None:
    assert coverage([(0, 0), (0, 3)], (1, 4), (2, 7)).tolist() == [[1, 1, 1, 2, 1, 1, 1], [0] * 7]
    assert coverage(grid((3, 3), (2, 2)), (2, 2), (3, 3)).tolist() == [[1, 2, 1], [2, 4, 2], [1, 2, 1]]


# The patched model


def small(model: ModelConfig = MODEL, **diffusion: object) -> ConditionedDiffusion:
    torch.manual_seed(0)
    network = ConditionedDiffusion(model, ENCODER, DiffusionConfig.model_validate(diffusion)).eval()
    for parameter in network.parameters():  # the last layers start at zero, which would hide everything before them
        nn.init.normal_(parameter, std=0.05)
    return network


def patched(size: int, **diffusion: object) -> ConditionedDiffusion:
    return small(patch={"enabled": True, "size": size}, **diffusion)


def batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    slices = torch.rand(3, 1, *SHAPE, generator=generator)
    return slices, torch.tensor([0, 499, 900]), torch.randn(3, 1, *SHAPE, generator=generator)


@pytest.mark.parametrize("loss", ["l1", "l2", "ssim-l1"])
def test_a_box_as_large_as_the_slice_changes_no_bit(loss: str) -> None:
    model, corners = patched(16, loss=loss), torch.zeros(3, 2, dtype=torch.long)
    slices, t, noise = batch()
    assert torch.equal(model(slices, t, noise, None, corners), model(slices, t, noise))
    condition = model.condition(slices)
    whole = model.predict_x0(slices, t, noise, condition)
    assert torch.equal(model.predict_x0(slices, t, noise, condition, corners), whole)


def test_outside_of_its_box_the_network_sees_the_clean_slice() -> None:
    model, corners, seen = patched(6), torch.tensor([[0, 0], [4, 7], [10, 10]]), []
    slices, t, noise = batch()
    model.unet.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(slices, t, noise, None, corners)
    model.predict_x0(slices, t, noise, model.condition(slices), corners)
    x0, box = to_signed(slices), inside(corners, (6, 6), SHAPE)
    noised = model.diffusion.q_sample(x0, t, noise)
    for x_t in seen:
        assert torch.equal(x_t[~box], x0[~box])
        assert torch.equal(x_t[box], noised[box])
    assert len(seen) == 2


@pytest.mark.parametrize("settings", [{}, {"loss": "l2", "p2_gamma": 1.0}, {"objective": "eps"}, {"loss": "ssim-l1"}])
def test_the_loss_is_that_of_the_boxes_alone(settings: dict[str, object]) -> None:
    model, corners = patched(12, **settings), torch.tensor([[0, 0], [4, 1], [3, 4]])
    slices, t, noise = batch()
    x0, box = to_signed(slices), inside(corners, (12, 12), SHAPE)
    x_t = torch.where(box, model.diffusion.q_sample(x0, t, noise), x0)
    prediction = model.restore(x_t, t, model.condition(slices))
    cut = [
        torch.stack([image[i, :, top : top + 12, left : left + 12] for i, (top, left) in enumerate(corners.tolist())])
        for image in (prediction, x0, noise)
    ]
    found = model(slices, t, noise, None, corners)
    torch.testing.assert_close(found, model.diffusion.loss(*cut, t))
    if not settings:
        torch.testing.assert_close(found, ((prediction - x0).abs() * box).sum() / box.sum())
    elsewhere = torch.where(box, noise, torch.full_like(noise, 9.0))
    assert torch.equal(model(slices, t, elsewhere, None, corners), found)
    assert model(slices, t, noise, None, corners.flip(0)) != found


def test_every_parameter_learns_from_boxes() -> None:
    model = patched(8, condition_dropout=0.5)
    slices, t, noise = batch()
    model.train()(
        slices, t, noise, torch.tensor([True, False, True]), torch.tensor([[0, 0], [8, 0], [4, 4]])
    ).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert np.isfinite(sum(float(p.grad.abs().sum()) for p in model.parameters()))
