"""Sparse convolution by masking: hidden sites stay zero and have no influence."""

import copy

import pytest
import torch
from torch import Tensor, nn

from cddpm.models.sparse import BatchNorm, VisibleSites, normalise


@pytest.fixture
def checkerboard() -> VisibleSites:
    return VisibleSites(torch.tensor([[[[True, False], [False, True]]], [[[False, True], [False, False]]]]))


def test_patches_are_enlarged_to_the_map(checkerboard: VisibleSites) -> None:
    expected = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1]], dtype=torch.bool).repeat_interleave(2, 0)
    assert torch.equal(checkerboard.mask(4, 4)[0, 0], expected)
    assert checkerboard.index(2, 2).tolist() == [0, 3, 5]


def test_mask_of_a_map_that_patches_do_not_tile(checkerboard: VisibleSites) -> None:
    with pytest.raises(ValueError, match="3x4 sites; a multiple of 2x2"):
        checkerboard.mask(3, 4)


@pytest.mark.parametrize("active", [torch.ones(2, 3, 3, dtype=torch.bool), torch.ones(2, 1, 3, 3)])
def test_other_shapes_and_types_are_refused(active: Tensor) -> None:
    with pytest.raises(ValueError, match=r"\(B, 1, h, w\) bool"):
        VisibleSites(active)


def test_nothing_visible_is_refused() -> None:
    with pytest.raises(ValueError, match="no patch is visible"):
        normalise(BatchNorm(3), torch.rand(1, 3, 4, 4), VisibleSites(torch.zeros(1, 1, 2, 2, dtype=torch.bool)))


def test_statistics_count_visible_sites_only() -> None:
    x = torch.tensor([[[[1.0, 3.0], [99.0, -99.0]]]])
    norm = BatchNorm(1)
    y = normalise(norm, x, VisibleSites(torch.tensor([[[[True, True], [False, False]]]])))
    torch.testing.assert_close(y, torch.tensor([[[[-1.0, 1.0], [0.0, 0.0]]]]), atol=1e-4, rtol=0)
    torch.testing.assert_close(norm.running_mean, torch.tensor([0.2]))  # 0.1 * 2
    torch.testing.assert_close(norm.running_var, torch.tensor([1.1]))  # 0.9 * 1 + 0.1 * (unbiased) 2
    assert norm.num_batches_tracked == 1


@pytest.mark.parametrize("training", [True, False])
def test_all_visible_is_the_dense_layer(training: bool) -> None:
    x = torch.randn(2, 5, 8, 8, requires_grad=True)
    weight = torch.randn(2, 5, 8, 8)
    dense = nn.BatchNorm2d(5).train(training)
    sparse = BatchNorm(5).train(training)
    expected = dense(x)
    found = normalise(sparse, x, VisibleSites(torch.ones(2, 1, 2, 2, dtype=torch.bool)))
    torch.testing.assert_close(found, expected)
    (slope,) = torch.autograd.grad((expected * weight).sum(), x)
    (found_slope,) = torch.autograd.grad((found * weight).sum(), x)
    torch.testing.assert_close(found_slope, slope, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(sparse.state_dict(), dense.state_dict())


def test_hidden_sites_have_no_influence(checkerboard: VisibleSites) -> None:
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    norm = BatchNorm(3)
    y = normalise(norm, x, checkerboard)
    y.square().mul(torch.randn(2, 3, 4, 4)).sum().backward()
    hidden = ~checkerboard.mask(4, 4).expand_as(x)
    assert not y[hidden].any()
    assert x.grad is not None
    assert not x.grad[hidden].any()
    changed = torch.where(hidden, 1e6, x.detach())
    torch.testing.assert_close(normalise(BatchNorm(3), changed, checkerboard), y.detach())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradient_against_float64_differences(checkerboard: VisibleSites, layout: torch.memory_format) -> None:
    norm = BatchNorm(3).double()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    y = normalise(norm, x, checkerboard)
    assert y.is_contiguous(memory_format=layout)
    assert torch.autograd.gradcheck(lambda x: normalise(norm, x, checkerboard), (x,))


def test_copies_share_nothing() -> None:
    norm = BatchNorm(2)
    twin = copy.deepcopy(norm)
    normalise(twin, torch.rand(1, 2, 2, 2), VisibleSites(torch.ones(1, 1, 1, 1, dtype=torch.bool)))
    assert twin.num_batches_tracked == 1
    assert norm.num_batches_tracked == 0


def test_the_norm_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match="input of shape"):
        BatchNorm(2)(torch.rand(1, 2, 3))
