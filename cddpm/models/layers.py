"""The cheap layers around the convolutions: PyTorch's own on a CPU, one pass over the memory on a GPU (``fused.py``).

On a GPU the full network's convolutions take less time than copies between layouts and number formats did: GroupNorm knows
neither channels-last nor bfloat16. Letters: B slices, C channels, H and W pixels.
"""

import functools
import logging
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

logger = logging.getLogger(__name__)

Resampling = Literal["none", "down", "up"]


def on_kernels(x: Tensor) -> bool:
    """Whether these layers run as kernels of our own where ``x`` lies."""
    return x.is_cuda and _triton_is_there()


@functools.cache
def _triton_is_there() -> bool:
    try:
        import triton  # noqa: F401
    except ImportError:
        logger.warning("Triton is missing (it comes with PyTorch for GPUs): the networks run at about half their speed")
        return False
    return True


def convolved(convolution: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """The convolution of ``x`` (B, C, H, W), and its bias (C_out,) if that is left to the layer after it, else None."""
    if not on_kernels(x) or not isinstance(convolution, nn.Conv2d):
        return convolution(x), None
    weight, stride, padding = convolution.weight, convolution.stride, convolution.padding
    return F.conv2d(x, weight, None, stride, padding, convolution.dilation, convolution.groups), convolution.bias


def normalised(
    norm: nn.Module, x: Tensor, modulation: Tensor | None = None, bias: Tensor | None = None, silu: bool = True
) -> Tensor:
    """``silu(norm(x + bias) (1 + scale) + shift)`` of ``x`` (B, C, H, W); ``modulation`` (B, 2 C) holds scale and shift."""
    if on_kernels(x) and isinstance(norm, nn.GroupNorm):
        from cddpm.models.fused import GroupNormSiLU

        half = torch.is_autocast_enabled("cuda")
        dtype = torch.get_autocast_dtype("cuda") if half else norm.weight.dtype
        found: Tensor = GroupNormSiLU.apply(
            x, norm.weight, norm.bias, modulation, bias, norm.num_groups, norm.eps, silu, dtype
        )
        return found
    hidden: Tensor = norm(x if bias is None else x + bias[:, None, None])
    if modulation is not None:
        scale, shift = modulation[:, :, None, None].chunk(2, dim=1)
        hidden = (hidden * (1 + scale)).add_(shift)
    return F.silu(hidden) if silu else hidden


def resampled(x: Tensor, resampling: Resampling) -> Tensor:
    """``x`` (B, C, H, W) with half the height and width (means of 2 x 2 pixels), with twice of both (nearest), or as it is."""
    if resampling == "none":
        return x
    if on_kernels(x):
        from cddpm.models.fused import Enlarged, Shrunk

        found: Tensor = (Shrunk if resampling == "down" else Enlarged).apply(x)
        return found
    return F.avg_pool2d(x, 2) if resampling == "down" else F.interpolate(x, scale_factor=2.0, mode="nearest")


def added(x: Tensor, y: Tensor, *biases: Tensor | None) -> Tensor:
    """``x + y`` (B, C, H, W) and what of ``biases`` (C,) is there."""
    left = [bias for bias in biases if bias is not None]
    if not left or not on_kernels(x):
        return functools.reduce(torch.add, (bias[:, None, None] for bias in left), x + y)
    from cddpm.models.fused import AddBiased

    found: Tensor = AddBiased.apply(x, y, functools.reduce(torch.add, left))
    return found
