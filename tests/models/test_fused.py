"""The layers as kernels on a GPU are PyTorch's own in float64, values and gradients, for any channels, groups and sizes."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")]
# slices, channels, height, width, groups; modulated, biased, activated; mean of what is normalised
NORMS = [
    (2, 32, 7, 5, 8, True, True, True, 0.0),
    (3, 48, 6, 6, 8, False, True, True, 50.0),
    (4, 256, 48, 48, 32, True, True, True, 0.0),
    (2, 384, 24, 24, 32, True, False, False, 0.0),
    (1, 16, 3, 2, 8, False, False, True, 0.0),
]


def apart(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("norm", NORMS)
def test_a_norm_is_pytorchs(norm: tuple[int, int, int, int, int, bool, bool, bool, float]) -> None:
    from cddpm.models.fused import GroupNormSiLU

    slices, channels, height, width, groups, modulated, biased, silu, mean = norm
    torch.manual_seed(0)
    x = torch.randn(slices, channels, height, width, device="cuda") + mean
    weight, offset, bias = torch.randn(3, channels, device="cuda")
    modulation = torch.randn(slices, 2 * channels, device="cuda")
    given = [x, weight, offset, *([modulation] if modulated else []), *([bias] if biased else [])]
    for tensor in given:
        tensor.requires_grad_()
    slope = torch.randn_like(x)

    args = x, weight, offset, modulation if modulated else None, bias if biased else None
    found = GroupNormSiLU.apply(*args, groups, 1e-5, silu, torch.float32)
    plain = x.double() + (bias.double()[:, None, None] if biased else 0)
    expected = F.group_norm(plain, groups, weight.double(), offset.double(), 1e-5)
    if modulated:
        scale, shift = modulation.double()[:, :, None, None].chunk(2, 1)
        expected = expected * (1 + scale) + shift
    expected = F.silu(expected) if silu else expected
    assert apart(found, expected) < 1e-5
    both = (torch.autograd.grad(y, given, slope.to(y.dtype)) for y in (found, expected))
    for own, wanted in zip(*both, strict=True):
        assert apart(own, wanted) < 2e-5


def test_sizes_and_sums_are_pytorchs() -> None:
    from cddpm.models.fused import AddBiased, Enlarged, Shrunk, channel_sums

    x = torch.randn(2, 130, 6, 8, device="cuda", requires_grad=True)
    bias = torch.randn(130, device="cuda")
    assert torch.equal(Enlarged.apply(x), F.interpolate(x, scale_factor=2.0))
    assert apart(Shrunk.apply(x), F.avg_pool2d(x, 2)) < 1e-6
    assert apart(AddBiased.apply(x, x, bias), 2 * x + bias[:, None, None]) < 1e-6
    assert apart(channel_sums(x), x.sum((0, 2, 3))) < 1e-5
    for own, plain in ((Enlarged, F.interpolate(x, scale_factor=2.0)), (Shrunk, F.avg_pool2d(x, 2))):
        slope = torch.randn_like(plain)
        expected = torch.autograd.grad(plain, x, slope)[0]
        assert apart(torch.autograd.grad(own.apply(x), x, slope)[0], expected) < 1e-6
