"""Triton kernels of the networks' cheap layers, for slices in channels-last memory on a GPU.

GroupNorm, the embedding's scale and shift, and SiLU read a tensor once for its moments and once for the result, where
PyTorch's own layers copy it between two layouts and two number formats; so does the way back. Sums are taken in float32, in an
order that does not depend on chance: two runs give the same bits.

Letters: N slices, H and W pixels, R = H W rows of C channels, G groups of C / G channels, K chunks of rows.
This module needs Triton (``models/layers.py`` asks whether it is there).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS, _CHANNELS = 32, 128
"""Of the tile that one program holds."""
_FEW = 32
"""Channels of the tile of narrow layers."""
_CHUNKS = 16
"""K at most: sums of a slice are taken by so many programs side by side."""
_PROGRAMS = 512
"""Sums over all slices are taken by so many programs at most."""


@triton.jit(do_not_specialize=["rows", "chunk", "chunks"])
def _moments(
    x, bias, means, squares, rows, chunk, channels, chunks, BIASED: tl.constexpr, R: tl.constexpr, C: tl.constexpr
):
    """Mean and sum of squared differences from it, of each channel of one chunk."""
    n, k = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c = tl.program_id(2) * C + tl.arange(0, C)
    there = c < channels
    x += n * rows * channels
    start = k * chunk
    end = tl.minimum(start + chunk, rows)
    pivot = tl.load(x + start * channels + c, mask=there, other=0.0).to(tl.float32)  # near the mean: nothing cancels
    first, second = tl.zeros((R, C), tl.float32), tl.zeros((R, C), tl.float32)
    for row in range(start, end, R):
        r = row + tl.arange(0, R)
        mask = (r < end)[:, None] & there[None, :]
        value = tl.load(x + r[:, None] * channels + c[None, :], mask=mask, other=0.0).to(tl.float32)
        away = tl.where(mask, value - pivot[None, :], 0.0)
        first += away
        second += away * away
    count = (end - start).to(tl.float32)
    total = tl.sum(first, 0)
    mean = pivot + total / count
    if BIASED:
        mean += tl.load(bias + c, mask=there, other=0.0).to(tl.float32)
    out = (n * chunks + k) * channels + c
    tl.store(means + out, mean, mask=there)
    tl.store(squares + out, tl.sum(second, 0) - total * total / count, mask=there)


@triton.jit(do_not_specialize=["rows", "chunk", "chunks", "groups", "width"])
def _group_moments(
    means,
    squares,
    mean,
    rstd,
    channel_mean,
    rows,
    chunk,
    channels,
    chunks,
    groups,
    width,
    eps,
    K: tl.constexpr,
    C: tl.constexpr,
):
    """Mean and 1 / standard deviation of one group, out of those of its chunks."""
    n, g = tl.program_id(0), tl.program_id(1)
    k, i = tl.arange(0, K), tl.arange(0, C)
    c = g * width + i
    mask = (k < chunks)[:, None] & (i < width)[None, :]
    at = (n * chunks + k[:, None]) * channels + c[None, :]
    part = tl.load(means + at, mask=mask, other=0.0)
    count = tl.minimum(chunk, rows - k * chunk).to(tl.float32)[:, None]
    weighed = tl.where(mask, part * count, 0.0)
    total = rows * width * 1.0
    centre = tl.sum(weighed) / total
    spread = tl.where(mask, count * (part - centre) * (part - centre), 0.0)
    variance = (tl.sum(tl.load(squares + at, mask=mask, other=0.0)) + tl.sum(spread)) / total
    tl.store(mean + n * groups + g, centre)
    tl.store(rstd + n * groups + g, 1.0 / tl.sqrt(variance + eps))
    tl.store(channel_mean + n * channels + c, tl.sum(weighed, 0) / (rows * 1.0), mask=i < width)


@triton.jit
def _affine(
    n,
    c,
    there,
    mean,
    rstd,
    gamma,
    beta,
    modulation,
    bias,
    channels,
    groups,
    width,
    BIASED: tl.constexpr,
    MODULATED: tl.constexpr,
):
    """Of each channel: what is taken off, 1 / standard deviation, factor and shift of what is normalised."""
    g = n * groups + c // width
    centre, inverse = tl.load(mean + g, mask=there, other=0.0), tl.load(rstd + g, mask=there, other=0.0)
    factor = tl.load(gamma + c, mask=there, other=0.0).to(tl.float32)
    shift = tl.load(beta + c, mask=there, other=0.0).to(tl.float32)
    if BIASED:
        centre -= tl.load(bias + c, mask=there, other=0.0).to(tl.float32)
    if MODULATED:
        own = modulation + n * 2 * channels + c
        scale = 1.0 + tl.load(own, mask=there, other=0.0).to(tl.float32)
        factor *= scale
        shift = shift * scale + tl.load(own + channels, mask=there, other=0.0).to(tl.float32)
    return centre, inverse, factor, shift


@triton.jit(do_not_specialize=["rows", "groups", "width"])
def _forward(
    x,
    y,
    mean,
    rstd,
    gamma,
    beta,
    modulation,
    bias,
    rows,
    channels,
    groups,
    width,
    BIASED: tl.constexpr,
    MODULATED: tl.constexpr,
    SILU: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
):
    n, r = tl.program_id(0).to(tl.int64), tl.program_id(1) * R + tl.arange(0, R)
    c = tl.program_id(2) * C + tl.arange(0, C)
    there = c < channels
    centre, inverse, factor, shift = _affine(
        n, c, there, mean, rstd, gamma, beta, modulation, bias, channels, groups, width, BIASED, MODULATED
    )
    mask = (r < rows)[:, None] & there[None, :]
    at = n * rows * channels + r[:, None] * channels + c[None, :]
    value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    z = (value - centre[None, :]) * (inverse * factor)[None, :] + shift[None, :]
    if SILU:
        z = z * tl.sigmoid(z)
    tl.store(y + at, z.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _slope(z, dy, SILU: tl.constexpr):
    if SILU:
        s = tl.sigmoid(z)
        dy = dy * s * (1.0 + z * (1.0 - s))
    return dy


@triton.jit(do_not_specialize=["rows", "chunk", "chunks", "groups", "width"])
def _backward_sums(
    x,
    dy,
    sums,
    dots,
    mean,
    rstd,
    gamma,
    beta,
    modulation,
    bias,
    rows,
    chunk,
    channels,
    chunks,
    groups,
    width,
    BIASED: tl.constexpr,
    MODULATED: tl.constexpr,
    SILU: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
):
    """Of each channel of one chunk the sum of dz, and of dz times what was normalised; z goes into SiLU."""
    n, k = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c = tl.program_id(2) * C + tl.arange(0, C)
    there = c < channels
    centre, inverse, factor, shift = _affine(
        n, c, there, mean, rstd, gamma, beta, modulation, bias, channels, groups, width, BIASED, MODULATED
    )
    start = k * chunk
    end = tl.minimum(start + chunk, rows)
    total, dot = tl.zeros((R, C), tl.float32), tl.zeros((R, C), tl.float32)
    for row in range(start, end, R):
        r = row + tl.arange(0, R)
        mask = (r < end)[:, None] & there[None, :]
        at = n * rows * channels + r[:, None] * channels + c[None, :]
        value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        given = tl.load(dy + at, mask=mask, other=0.0).to(tl.float32)
        normal = (value - centre[None, :]) * inverse[None, :]
        dz = _slope(normal * factor[None, :] + shift[None, :], given, SILU)
        total += dz
        dot += dz * normal
    out = (n * chunks + k) * channels + c
    tl.store(sums + out, tl.sum(total, 0), mask=there)
    tl.store(dots + out, tl.sum(dot, 0), mask=there)


@triton.jit(do_not_specialize=["rows", "chunks", "groups", "width", "slices"])
def _backward_groups(
    sums,
    dots,
    mean,
    rstd,
    channel_mean,
    gamma,
    beta,
    modulation,
    first,
    second,
    dmodulation,
    dweights,
    rows,
    channels,
    chunks,
    groups,
    width,
    slices,
    MODULATED: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
):
    """Of one group the two means that its gradient loses, and the gradients of all that its channels are affected by."""
    n, g = tl.program_id(0), tl.program_id(1)
    k, i = tl.arange(0, K), tl.arange(0, C)
    c, there = g * width + i, i < width
    mask = (k < chunks)[:, None] & there[None, :]
    at = (n * chunks + k[:, None]) * channels + c[None, :]
    total = tl.sum(tl.load(sums + at, mask=mask, other=0.0), 0)
    dot = tl.sum(tl.load(dots + at, mask=mask, other=0.0), 0)
    weight = tl.load(gamma + c, mask=there, other=0.0).to(tl.float32)
    offset = tl.load(beta + c, mask=there, other=0.0).to(tl.float32)
    factor = weight
    if MODULATED:
        own = n * 2 * channels + c
        scale = 1.0 + tl.load(modulation + own, mask=there, other=0.0).to(tl.float32)
        factor = weight * scale
        tl.store(dmodulation + own, (weight * dot + offset * total).to(dmodulation.dtype.element_ty), mask=there)
        tl.store(dmodulation + own + channels, total.to(dmodulation.dtype.element_ty), mask=there)
    else:
        scale = tl.zeros((C,), tl.float32) + 1.0
    count = rows * 1.0
    members = count * width
    mean_sum, mean_dot = tl.sum(factor * total) / members, tl.sum(factor * dot) / members
    tl.store(first + n * groups + g, mean_sum)
    tl.store(second + n * groups + g, mean_dot)
    centre, inverse = tl.load(mean + n * groups + g), tl.load(rstd + n * groups + g)
    normal = inverse * count * (tl.load(channel_mean + n * channels + c, mask=there, other=0.0) - centre)
    dbias = inverse * (factor * total - count * mean_sum - mean_dot * normal)
    out = n * channels + c
    tl.store(dweights + out, scale * dot, mask=there)
    tl.store(dweights + slices * channels + out, scale * total, mask=there)
    tl.store(dweights + 2 * slices * channels + out, dbias, mask=there)


@triton.jit(do_not_specialize=["rows", "groups", "width"])
def _backward(
    x,
    dy,
    dx,
    mean,
    rstd,
    gamma,
    beta,
    modulation,
    bias,
    first,
    second,
    rows,
    channels,
    groups,
    width,
    BIASED: tl.constexpr,
    MODULATED: tl.constexpr,
    SILU: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
):
    n, r = tl.program_id(0).to(tl.int64), tl.program_id(1) * R + tl.arange(0, R)
    c = tl.program_id(2) * C + tl.arange(0, C)
    there = c < channels
    centre, inverse, factor, shift = _affine(
        n, c, there, mean, rstd, gamma, beta, modulation, bias, channels, groups, width, BIASED, MODULATED
    )
    g = n * groups + c // width
    mean_sum, mean_dot = tl.load(first + g, mask=there, other=0.0), tl.load(second + g, mask=there, other=0.0)
    mask = (r < rows)[:, None] & there[None, :]
    at = n * rows * channels + r[:, None] * channels + c[None, :]
    value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    given = tl.load(dy + at, mask=mask, other=0.0).to(tl.float32)
    normal = (value - centre[None, :]) * inverse[None, :]
    dz = _slope(normal * factor[None, :] + shift[None, :], given, SILU)
    found = inverse[None, :] * (factor[None, :] * dz - mean_sum[None, :] - normal * mean_dot[None, :])
    tl.store(dx + at, found.to(dx.dtype.element_ty), mask=mask)


@triton.jit
def _add(x, y, bias, out, size, channels, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    total = tl.load(x + at, mask=mask, other=0.0).to(tl.float32) + tl.load(y + at, mask=mask, other=0.0).to(tl.float32)
    total += tl.load(bias + at % channels, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows", "chunk"])
def _column_sums(x, sums, rows, chunk, channels, R: tl.constexpr, C: tl.constexpr):
    """Of each channel the sum over one chunk of all rows."""
    k = tl.program_id(0)
    c = tl.program_id(1) * C + tl.arange(0, C)
    there = c < channels
    start = k * chunk
    end = tl.minimum(start + chunk, rows)
    total = tl.zeros((R, C), tl.float32)
    for row in range(start, end, R):
        r = (row + tl.arange(0, R)).to(tl.int64)
        mask = (r < end)[:, None] & there[None, :]
        total += tl.load(x + r[:, None] * channels + c[None, :], mask=mask, other=0.0).to(tl.float32)
    tl.store(sums + k * channels + c, tl.sum(total, 0), mask=there)


@triton.jit(do_not_specialize=["width"])
def _enlarge(x, y, width, channels, factor, W: tl.constexpr, C: tl.constexpr):
    """One row of twice the height and width: each pixel four times, times ``factor``; ``width`` is that of y."""
    row = tl.program_id(0).to(tl.int64)  # counted through all slices: their heights are even
    w, c = tl.program_id(1) * W + tl.arange(0, W), tl.program_id(2) * C + tl.arange(0, C)
    mask = (w < width)[:, None] & (c < channels)[None, :]
    source = ((row // 2) * (width // 2) + w // 2)[:, None] * channels + c[None, :]
    value = tl.load(x + source, mask=mask, other=0.0).to(tl.float32) * factor
    tl.store(y + (row * width + w)[:, None] * channels + c[None, :], value.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["width"])
def _shrink(x, y, width, channels, factor, W: tl.constexpr, C: tl.constexpr):
    """One row of half the height and width: sums of 2 x 2 pixels, times ``factor``; ``width`` is that of y."""
    row = tl.program_id(0).to(tl.int64)
    w, c = tl.program_id(1) * W + tl.arange(0, W), tl.program_id(2) * C + tl.arange(0, C)
    mask = (w < width)[:, None] & (c < channels)[None, :]
    first = (4 * row * width + 2 * w)[:, None] * channels + c[None, :]
    below = first + 2 * width * channels
    total = tl.load(x + first, mask=mask, other=0.0).to(tl.float32)
    total += tl.load(x + first + channels, mask=mask, other=0.0).to(tl.float32)
    total += tl.load(x + below, mask=mask, other=0.0).to(tl.float32)
    total += tl.load(x + below + channels, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + (row * width + w)[:, None] * channels + c[None, :], (total * factor).to(y.dtype.element_ty), mask=mask)


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
        _moments[cut.by_chunk](x, some, parts[0], parts[1], cut.rows, cut.chunk, channels, cut.chunks, biased, **tile)
        _group_moments[n, groups](
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
        _forward[cut.by_tile](
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
        _backward_sums[cut.by_chunk](
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
        _backward_groups[n, groups](
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
        _backward[cut.by_tile](
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
        _add[(triton.cdiv(y.numel(), block),)](x, y, bias, out, y.numel(), y.shape[1], block)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradient passes through."""
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
    return _resized(_enlarge, x, (n, channels, 2 * height, 2 * width), factor)


def _shrunk(x: Tensor, factor: float) -> Tensor:
    n, channels, height, width = x.shape
    return _resized(_shrink, x, (n, channels, height // 2, width // 2), factor)


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
    _column_sums[chunks, triton.cdiv(channels, tile)](x, sums, rows, chunk, channels, R=tall, C=tile)
    return sums.sum(0)
