"""Planes that are larger than the slices of a network: overlapping tiles of its size, whose predictions are blended.

The tile at the model's own window comes first; the others lie around it, no further apart than half a tile. Where two overlap,
the one fades in as the other fades out (squares of sine and cosine, over the whole overlap); at the plane's own edge nothing
fades. All weights of a pixel sum to one: a network that changed nothing would change nothing here.

Letters: S slices, H, W a plane, h, w a tile, N tiles of all slices.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

Corner = tuple[int, int]
Size = tuple[int, int]
Tile = tuple[int, Corner]
"""(slice, corner)"""


@dataclass(frozen=True)
class Tiling:
    """Which tiles are predicted of a volume of ``shape`` (S, H, W), and how they become one again."""

    shape: tuple[int, int, int]
    window: tuple[slice, slice, slice]
    """The part of it that the model was made for."""
    own: tuple[Tile, ...]
    """The window's slices."""
    others: tuple[Tile, ...]
    """Slices with brain below and above them, and tiles beside them where brain lies outside of the window's rows or columns."""

    @property
    def size(self) -> Size:
        """Of a tile, (h, w)."""
        _, rows, columns = self.window
        return rows.stop - rows.start, columns.stop - columns.start

    @classmethod
    def of(cls, brain: NDArray[np.bool_], window: tuple[slice, slice, slice]) -> "Tiling":
        """What is needed to see all of ``brain`` (S, H, W) through windows of one size."""
        slices, rows, columns = window
        corner, size = (rows.start, columns.start), (rows.stop - rows.start, columns.stop - columns.start)
        tops, lefts = (_starts(corner[axis], size[axis], brain.shape[1 + axis]) for axis in range(2))
        corners = list(product(tops, lefts))
        own = [(s, corner) for s in range(slices.start, slices.stop)]
        others = [(s, corner) for s in range(len(brain)) if not slices.start <= s < slices.stop and brain[s].any()]
        outside = brain.copy()
        outside[:, rows, columns] = False
        wide = np.flatnonzero(outside.any((1, 2))).tolist()
        others += [(s, place) for s in wide for place in corners if place != corner]
        return cls((brain.shape[0], brain.shape[1], brain.shape[2]), window, tuple(own), tuple(others))

    def cut(self, volume: NDArray[Any], tiles: Sequence[Tile]) -> NDArray[Any]:
        """The tiles of a volume (S, H, W): (N, h, w)."""
        h, w = self.size
        planes = [volume[s, y : y + h, x : x + w] for s, (y, x) in tiles]
        return np.stack(planes) if planes else np.empty((0, h, w), volume.dtype)

    def names(self, tiles: Sequence[Tile]) -> tuple[tuple[int, ...], ...]:
        """What tells the noise of each tile apart: the number of its slice in the window, and its place unless that is there."""
        slices, rows, columns = self.window
        corner = (rows.start, columns.start)
        return tuple(
            (s - slices.start, *(() if place == corner else (place[0] - corner[0], place[1] - corner[1])))
            for s, place in tiles
        )

    def joined(self, own: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
        """The volume (S, H, W) of predictions (N, h, w) of both kinds of tiles, blended; 0 where there is none."""
        parts: dict[int, list[tuple[Corner, NDArray[np.float32]]]] = {}
        for (s, corner), values in zip((*self.own, *self.others), chain(own, others), strict=True):
            parts.setdefault(s, []).append((corner, values))
        result = np.zeros(self.shape, np.float32)
        for s, found in parts.items():
            result[s] = self._blended(found)
        return result

    def _blended(self, parts: Sequence[tuple[Corner, NDArray[np.float32]]]) -> NDArray[np.float64]:
        """One plane (H, W)."""
        total, weights = np.zeros(self.shape[1:]), np.zeros(self.shape[1:])
        for corner, values in parts:
            rows, columns = (self._weights(axis, start) for axis, start in enumerate(corner))
            weight = np.outer(rows, columns) if len(parts) > 1 else np.ones(self.size)
            there = tuple(slice(start, start + n) for start, n in zip(corner, self.size, strict=True))
            total[there] += weight * values
            weights[there] += weight
        return np.divide(total, weights, out=total, where=weights > 0)

    def _weights(self, axis: int, start: int) -> NDArray[np.float64]:
        """Of the tile that begins at ``start``, along one axis of the plane."""
        size = self.size[axis]
        starts = _starts(self.window[1 + axis].start, size, self.shape[1 + axis])
        place, weights = start + np.arange(size) + 0.5, np.ones(size)
        for before in starts[: starts.index(start)][-1:]:
            weights *= np.sin(np.pi / 2 * np.minimum(1, (place - start) / max(1, before + size - start))) ** 2
        for behind in starts[starts.index(start) + 1 :][:1]:
            weights *= np.cos(np.pi / 2 * np.maximum(0, (place - behind) / max(1, start + size - behind))) ** 2
        return weights


def _starts(own: int, size: int, length: int) -> list[int]:
    """Where tiles begin along an axis of ``length``, one of them at ``own``, no further apart than half their size."""
    after = length - size - own
    below, above = (math.ceil(2 * reach / size) for reach in (own, after))
    return sorted(
        {own - round(own * i / below) for i in range(1, below + 1)}
        | {own + round(after * i / above) for i in range(1, above + 1)}
        | {own}
    )
