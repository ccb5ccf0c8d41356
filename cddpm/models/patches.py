"""Boxes of patched diffusion: where they lie on a slice, and how predictions inside of them become a slice again.

Behrendt et al. 2023, "Patched diffusion models for unsupervised anomaly detection in brain MRI" (MIDL): only a box of the
slice is noised and restored, its surroundings stay as they are. Letters: B slices, C channels, H, W their size, h, w that of
the boxes; a corner is (top, left) in pixels.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cddpm.config import PatchConfig

Corner = tuple[int, int]
Size = tuple[int, int]


def grid(shape: Size, size: Size, overlap: int = 0) -> list[Corner]:
    """Corners of boxes of ``size`` that cover a slice of ``shape``, row by row.

    Neighbours share ``overlap`` pixels; the last box of a row or column ends flush with the slice and may share more.
    Raises ``ValueError`` for boxes larger than the slice or an overlap that leaves no step.
    """
    return [(top, left) for top in _starts(shape[0], size[0], overlap) for left in _starts(shape[1], size[1], overlap)]


def _starts(length: int, size: int, overlap: int) -> list[int]:
    if not 0 <= overlap < size <= length:
        raise ValueError(f"boxes of {size} pixels with overlap {overlap}: allowed is 0 <= overlap < size <= {length}")
    return [*range(0, length - size, size - overlap), length - size]


def random_corner(seed: int, shape: Size, size: Size) -> Corner:
    """A corner anywhere on the slice, decided by ``seed``; even over all places if seeds are hashes.

    Raises ``ValueError`` for a box that is larger than the slice.
    """
    rows, columns = (whole - part + 1 for whole, part in zip(shape, size, strict=True))
    if rows < 1 or columns < 1:
        raise ValueError(f"boxes of {size} pixels: allowed is up to {shape}, the slice")
    return divmod(seed % (rows * columns), columns)


def training_corner(config: PatchConfig, seed: int, shape: Size) -> Corner:
    """The corner of a training slice of ``shape``, decided by ``seed`` (a hash of its place in the data) alone."""
    size = (config.size, config.size)
    if config.placement == "grid":
        corners = grid(shape, size, config.overlap)
        return corners[seed % len(corners)]
    if config.placement == "random":
        return random_corner(seed, shape, size)
    raise ValueError(f"patch placement: {config.placement!r}; allowed are grid and random")


def inside(corners: Tensor, size: Size, shape: Size) -> Tensor:
    """Where the box of each slice lies: (B, 1, H, W) bool from ``corners`` (B, 2)."""
    rows, columns = (
        (place >= start) & (place < start + length)
        for place, start, length in zip(_places(shape, corners.device), corners.T[:, :, None], size, strict=True)
    )
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def crop(images: Tensor, corners: Tensor, size: Size) -> Tensor:
    """The boxes of ``images`` (B, C, H, W) at ``corners`` (B, 2): (B, C, h, w); gradients pass."""
    rows, columns = (
        start + place for place, start in zip(_places(size, corners.device), corners.T[:, :, None], strict=True)
    )
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    cut = images.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]]
    return cut.permute(0, 3, 1, 2)


def _places(shape: Size, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.arange(shape[0], device=device), torch.arange(shape[1], device=device)


def coverage(corners: Sequence[Corner], size: Size, shape: Size) -> NDArray[np.float32]:
    """How many of the boxes at ``corners`` hold each pixel: (H, W)."""
    counts = np.zeros(shape, np.float32)
    for top, left in corners:
        counts[top : top + size[0], left : left + size[1]] += 1
    return counts
