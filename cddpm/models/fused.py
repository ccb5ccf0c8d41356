"""The cheap layers as functions with gradients, each a few kernels of ``kernels.py``.

Letters: N slices, C channels, H and W pixels, G groups of channels, K chunks of the H W rows. This module needs Triton.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from cddpm.models import kernels

_ROWS, _CHANNELS = 32, 128
"""Of the tile that one program holds."""
_FEW = 32
"""Channels of the tile of narrow layers."""
_CHUNKS = 16
"""K at most: sums of a slice are taken by so many programs side by side."""
_PROGRAMS = 512
"""Sums over all slices are taken by so many programs at most."""


def _tile(channels: int) -> tuple[int, int]:
    """Rows and channels of a tile: few forms, since each is compiled for itself."""
    tile = _CHANNELS if channels > _FEW else _FEW
    return _ROWS * _CHANNELS // tile, tile


class _Shape:
    """How the work on one tensor (N, C, H, W) is cut."""

    def __init__(self, x: Tensor, groups: int) -> None:
        self.slices, self.channels = x.shape[0], x.shape[1]
        self.rows, self.groups = x.shape[2] * x.shape[3], groups
        self.width = self.channels // groups
        self.tall, self.tile = _tile(self.channels)
        self.chunk = max(1, triton.cdiv(triton.cdiv(self.rows, _CHUNKS), self.tall)) * self.tall
        self.chunks = triton.cdiv(self.rows, self.chunk)
        self.blocks = triton.cdiv(self.channels, self.tile)

    @property
    def by_chunk(self) -> tuple[int, int, int]:
        return self.slices, self.chunks, self.blocks

    @property
    def by_tile(self) -> tuple[int, int, int]:
        return self.slices, triton.cdiv(self.rows, self.tall), self.blocks

    @property
    def small(self) -> dict[str, int]:
        """Tile of the kernels over one group."""
        return {"K": _CHUNKS, "C": max(_CHUNKS, triton.next_power_of_2(self.width))}


class GroupNormSiLU(torch.autograd.Function):
    """``silu(norm(x + bias) (1 + scale) + shift)``; ``modulation`` (N, 2 C) holds scale and shift, either may be None."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gamma: Tensor,
        beta: Tensor,
        modulation: Tensor | None,
        bias: Tensor | None,
        groups: int,
        eps: float,
        silu: bool,
        dtype: torch.dtype,
    ) -> Tensor:
        """(N, C, H, W) of any layout to (N, C, H, W) channels-last of ``dtype``."""
        x = x.contiguous(memory_format=torch.channels_last)
        modulation = None if modulation is None else modulation.contiguous()
        cut = _Shape(x, groups)
        n, channels = cut.slices, cut.channels
        parts = x.new_empty((2, n, cut.chunks, channels), dtype=torch.float32)
        mean, rstd = x.new_empty((2, n, groups), dtype=torch.float32)
        channel_mean = x.new_empty((n, channels), dtype=torch.float32)
        biased, modulated, tile = bias is not None, modulation is not None, {"R": cut.tall, "C": cut.tile}
        some, other = (x if bias is None else bias), (x if modulation is None else modulation)
        y = torch.empty_like(x, dtype=dtype, memory_format=torch.channels_last)
        kernels.moments[cut.by_chunk](
            x, some, parts[0], parts[1], cut.rows, cut.chunk, channels, cut.chunks, biased, **tile
        )
        kernels.group_moments[n, groups](
            parts[0],
            parts[1],
            mean,
            rstd,
            channel_mean,
            cut.rows,
            cut.chunk,
            channels,
            cut.chunks,
            groups,
            cut.width,
            eps,
            **cut.small,
        )
        kernels.forward[cut.by_tile](
            x,
            y,
            mean,
            rstd,
            gamma,
            beta,
            other,
            some,
            cut.rows,
            channels,
            groups,
            cut.width,
            biased,
            modulated,
            silu,
            **tile,
        )
        ctx.save_for_backward(x, gamma, beta, modulation, bias, mean, rstd, channel_mean)
        ctx.groups, ctx.silu = groups, silu
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, gamma, beta, modulation and bias."""
        x, gamma, beta, modulation, bias, mean, rstd, channel_mean = ctx.saved_tensors
        dy = dy.contiguous(memory_format=torch.channels_last)
        cut = _Shape(x, ctx.groups)
        n, channels, groups = cut.slices, cut.channels, cut.groups
        biased, modulated, tile = bias is not None, modulation is not None, {"R": cut.tall, "C": cut.tile}
        some, other = (x if bias is None else bias), (x if modulation is None else modulation)
        parts = x.new_empty((2, n, cut.chunks, channels), dtype=torch.float32)
        first, second = x.new_empty((2, n, groups), dtype=torch.float32)
        weights = x.new_empty((3, n, channels), dtype=torch.float32)
        dmodulation = torch.empty_like(other) if modulated else weights
        dx = torch.empty_like(x, memory_format=torch.channels_last)
        kernels.backward_sums[cut.by_chunk](
            x,
            dy,
            parts[0],
            parts[1],
            mean,
            rstd,
            gamma,
            beta,
            other,
            some,
            cut.rows,
            cut.chunk,
            channels,
            cut.chunks,
            groups,
            cut.width,
            biased,
            modulated,
            ctx.silu,
            **tile,
        )
        kernels.backward_groups[n, groups](
            parts[0],
            parts[1],
            mean,
            rstd,
            channel_mean,
            gamma,
            beta,
            other,
            first,
            second,
            dmodulation,
            weights,
            cut.rows,
            channels,
            cut.chunks,
            groups,
            cut.width,
            n,
            modulated,
            **cut.small,
        )
        kernels.backward[cut.by_tile](
            x,
            dy,
            dx,
            mean,
            rstd,
            gamma,
            beta,
            other,
            some,
            first,
            second,
            cut.rows,
            channels,
            groups,
            cut.width,
            biased,
            modulated,
            ctx.silu,
            **tile,
        )
        dgamma, dbeta, dbias = weights.sum(1)
        return (
            dx,
            dgamma.to(gamma.dtype),
            dbeta.to(beta.dtype),
            dmodulation if modulated else None,
            dbias.to(bias.dtype) if biased else None,
            None,
            None,
            None,
            None,
        )


class AddBiased(torch.autograd.Function):
    """``x + y + bias`` of two tensors (N, C, H, W) and one value a channel, in the number format of ``y``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, bias: Tensor) -> Tensor:
        """(N, C, H, W) channels-last."""
        ctx.dtypes = x.dtype, y.dtype, bias.dtype
        x, y = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, y))
        out = torch.empty_like(y, memory_format=torch.channels_last)
        block = 4096
        kernels.add[(triton.cdiv(y.numel(), block),)](x, y, bias, out, y.numel(), y.shape[1], block)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradient passes through; what comes as part of a wider tensor is copied once for all three."""
        dy = dy.contiguous(memory_format=torch.channels_last)
        of_x, of_y, of_bias = ctx.dtypes
        return dy.to(of_x), dy.to(of_y), channel_sums(dy).to(of_bias)


class Enlarged(torch.autograd.Function):
    """Twice the height and width: nearest neighbours."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, 2 H, 2 W), channels-last."""
        return _enlarged(x, 1.0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        """Sums of 2 x 2 pixels."""
        return _shrunk(dy, 1.0)


class Shrunk(torch.autograd.Function):
    """Half the height and width, which are even: means of 2 x 2 pixels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H / 2, W / 2), channels-last."""
        return _shrunk(x, 0.25)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        """A quarter for each pixel."""
        return _enlarged(dy, 0.25)


def _enlarged(x: Tensor, factor: float) -> Tensor:
    n, channels, height, width = x.shape
    return _resized(kernels.enlarge, x, (n, channels, 2 * height, 2 * width), factor)


def _shrunk(x: Tensor, factor: float) -> Tensor:
    n, channels, height, width = x.shape
    return _resized(kernels.shrink, x, (n, channels, height // 2, width // 2), factor)


def _resized(kernel: Any, x: Tensor, shape: tuple[int, int, int, int], factor: float) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    n, channels, height, width = shape
    wide, tile = _tile(channels)
    kernel[n * height, triton.cdiv(width, wide), triton.cdiv(channels, tile)](
        x, y, width, channels, factor, W=wide, C=tile
    )
    return y


def channel_sums(x: Tensor) -> Tensor:
    """Sums (C,) float32 of ``x`` (N, C, H, W) over all but its channels, in an order that is always the same."""
    x = x.contiguous(memory_format=torch.channels_last)
    channels, rows = x.shape[1], x.numel() // x.shape[1]
    tall, tile = _tile(channels)
    chunk = triton.cdiv(triton.cdiv(rows, _PROGRAMS), tall) * tall
    chunks = triton.cdiv(rows, chunk)
    sums = x.new_empty((chunks, channels), dtype=torch.float32)
    kernels.column_sums[chunks, triton.cdiv(channels, tile)](x, sums, rows, chunk, channels, R=tall, C=tile)
    return sums.sum(0)
