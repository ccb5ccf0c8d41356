"""Triton kernels of the networks' cheap layers, for slices in channels-last memory on a GPU; ``fused.py`` calls them.

GroupNorm, the embedding's scale and shift, and SiLU read a tensor once for its moments and once for the result, where
PyTorch's own layers copy it between two layouts and two number formats; so does the way back. Sums are taken in float32, in an
order that does not depend on chance: two runs give the same bits.

Letters: n slice, R = H W rows of C channels in tiles, K chunks of rows. This module needs Triton (``layers.py`` asks whether it
is there).
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rows", "chunk", "chunks"])
def moments(
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
def group_moments(
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
def affine(
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
def forward(
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
    """Normalise one tile, scale, shift and activate it."""
    n, r = tl.program_id(0).to(tl.int64), tl.program_id(1) * R + tl.arange(0, R)
    c = tl.program_id(2) * C + tl.arange(0, C)
    there = c < channels
    centre, inverse, factor, shift = affine(
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
def slope(z, dy, SILU: tl.constexpr):
    """The gradient dy of SiLU's result as that of its argument z."""
    if SILU:
        s = tl.sigmoid(z)
        dy = dy * s * (1.0 + z * (1.0 - s))
    return dy


@triton.jit(do_not_specialize=["rows", "chunk", "chunks", "groups", "width"])
def backward_sums(
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
    centre, inverse, factor, shift = affine(
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
        dz = slope(normal * factor[None, :] + shift[None, :], given, SILU)
        total += dz
        dot += dz * normal
    out = (n * chunks + k) * channels + c
    tl.store(sums + out, tl.sum(total, 0), mask=there)
    tl.store(dots + out, tl.sum(dot, 0), mask=there)


@triton.jit(do_not_specialize=["rows", "chunks", "groups", "width", "slices"])
def backward_groups(
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
def backward(
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
    """The gradient of one tile of x, out of dy and the sums over its group."""
    n, r = tl.program_id(0).to(tl.int64), tl.program_id(1) * R + tl.arange(0, R)
    c = tl.program_id(2) * C + tl.arange(0, C)
    there = c < channels
    centre, inverse, factor, shift = affine(
        n, c, there, mean, rstd, gamma, beta, modulation, bias, channels, groups, width, BIASED, MODULATED
    )
    g = n * groups + c // width
    mean_sum, mean_dot = tl.load(first + g, mask=there, other=0.0), tl.load(second + g, mask=there, other=0.0)
    mask = (r < rows)[:, None] & there[None, :]
    at = n * rows * channels + r[:, None] * channels + c[None, :]
    value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    given = tl.load(dy + at, mask=mask, other=0.0).to(tl.float32)
    normal = (value - centre[None, :]) * inverse[None, :]
    dz = slope(normal * factor[None, :] + shift[None, :], given, SILU)
    found = inverse[None, :] * (factor[None, :] * dz - mean_sum[None, :] - normal * mean_dot[None, :])
    tl.store(dx + at, found.to(dx.dtype.element_ty), mask=mask)


@triton.jit
def add(x, y, bias, out, size, channels, BLOCK: tl.constexpr):
    """x + y and a bias a channel, in one pass."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    total = tl.load(x + at, mask=mask, other=0.0).to(tl.float32) + tl.load(y + at, mask=mask, other=0.0).to(tl.float32)
    total += tl.load(bias + at % channels, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows", "chunk"])
def column_sums(x, sums, rows, chunk, channels, R: tl.constexpr, C: tl.constexpr):
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
def enlarge(x, y, width, channels, factor, W: tl.constexpr, C: tl.constexpr):
    """One row of twice the height and width: each pixel four times, times ``factor``; ``width`` is that of y."""
    row = tl.program_id(0).to(tl.int64)  # counted through all slices: their heights are even
    w, c = tl.program_id(1) * W + tl.arange(0, W), tl.program_id(2) * C + tl.arange(0, C)
    mask = (w < width)[:, None] & (c < channels)[None, :]
    source = ((row // 2) * (width // 2) + w // 2)[:, None] * channels + c[None, :]
    value = tl.load(x + source, mask=mask, other=0.0).to(tl.float32) * factor
    tl.store(y + (row * width + w)[:, None] * channels + c[None, :], value.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["width"])
def shrink(x, y, width, channels, factor, W: tl.constexpr, C: tl.constexpr):
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
