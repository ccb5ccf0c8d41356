"""Which slice is seen when: a pure function of the seed and the position, so that a resumed run sees the same slices."""

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]


def batch_rows(rows: Rows, seed: int, start: int, size: int) -> Rows:
    """Rows (size,) at positions ``start`` to ``start + size`` of the endless stream of shuffled passes over ``rows``."""
    picked = np.empty(size, dtype=np.int64)
    filled = 0
    while filled < size:
        lap, offset = divmod(start + filled, len(rows))
        lap_rows = _lap(rows, seed, lap)[offset : offset + size - filled]
        picked[filled : filled + len(lap_rows)] = lap_rows
        filled += len(lap_rows)
    return picked


def _lap(rows: Rows, seed: int, lap: int) -> Rows:
    order = np.random.Generator(np.random.Philox(key=[seed & (2**63 - 1), lap])).permutation(len(rows))
    return rows[order]


def evenly_spaced(rows: Rows, count: int) -> Rows:
    """At most ``count`` of ``rows``, evenly spaced, always the same."""
    if len(rows) <= count:
        return rows
    return rows[np.linspace(0, len(rows) - 1, count).round().astype(np.int64)]
