"""Predictions of a few volumes in memory, as scoring reads them from a reconstruction cache on the disk."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from cddpm.reconstruct.part import Key

Rounded = dict[Key, NDArray[np.float16]]


class PreviewCache:
    """What ``reconstruct.cache.ReconstructionCache`` would give of the same predictions, bit for bit."""

    def __init__(self, volumes: Mapping[str, Rounded]) -> None:
        """``volumes``: branches c and d, (S, H, W) each, by volume id, as ``part.rounded`` makes them."""
        self._volumes = volumes
        keys = {key for arrays in volumes.values() for key in arrays}
        self.levels = tuple(sorted({level for _, level, _ in keys}))
        self.seeds = tuple(sorted({seed for *_, seed in keys}))
        self.guided = any(branch == "d" for branch, *_ in keys)
        """Whether there is an unconditional prediction beside each conditional one."""

    def c(self, volume: str, level: int, seed: int) -> NDArray[np.float16]:
        """Conditional prediction (S, H, W)."""
        return self._volumes[volume]["c", level, seed]

    def d(self, volume: str, level: int, seed: int) -> NDArray[np.float16]:
        """Conditional minus unconditional prediction (S, H, W)."""
        return self._volumes[volume]["d", level, seed]
