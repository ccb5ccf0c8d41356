"""One volume predicted at every level and seed."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cddpm.config import NoiseConfig
from cddpm.reconstruct.part import Key
from cddpm.reconstruct.predict import Manner, Request, predict_volumes


def predict_volume(
    model: Any,
    slices: NDArray[np.floating],
    levels: Sequence[int],
    seeds: Sequence[int],
    noise: NoiseConfig,
    key: str,
    seed: int,
    batch_size: int = 64,
    guide: Any = None,
    **settings: Any,
) -> dict[Key, NDArray[np.float32]]:
    """Predictions (S, H, W) by branch, level and seed; ``settings`` are those of ``Manner``."""
    request = Request(key, slices, tuple(product(dict.fromkeys(levels), dict.fromkeys(seeds))))
    ((_, arrays),) = predict_volumes(model, [request], Manner(noise, seed, batch_size, **settings), guide)
    return arrays
