"""The reconstructions of a volume, one per noise level and seed, and the one residual that they leave.

Either their mean is compared with the image, or each of them is and the residuals are combined (``scoring.combine``), or
all of them together are the distribution from which the image is told apart (residual ``mahalanobis``).
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cddpm.config import ScoringConfig
from cddpm.errors import ConfigError
from cddpm.scoring import half
from cddpm.scoring.calibration import Statistics, standardised
from cddpm.scoring.case import Case, Reconstructions
from cddpm.scoring.residual import ENSEMBLE_WINDOWS, anomaly_scores, difference, dissimilarity, mahalanobis_map, matched


class ArrayMemo:
    """Least-recently-used memo of read-only arrays, bounded in bytes; may be used by several threads.

    Two threads that miss the same key at once both compute it: the arrays are equal, and no thread waits for another.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.held_bytes = 0
        self._arrays: OrderedDict[Hashable, NDArray] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, compute: Callable[[], NDArray]) -> NDArray:
        """The array of ``key``, computed if it is not held. The caller must not write to it."""
        with self._lock:
            if key in self._arrays:
                self._arrays.move_to_end(key)
                return self._arrays[key]
        array = compute()
        array.flags.writeable = False
        with self._lock:
            self._keep(key, array)
        return array

    def _keep(self, key: Hashable, array: NDArray) -> None:
        if key in self._arrays or array.nbytes > self.capacity_bytes:
            return
        self._arrays[key] = array
        self.held_bytes += array.nbytes
        while self.held_bytes > self.capacity_bytes:
            _, forgotten = self._arrays.popitem(last=False)
            self.held_bytes -= forgotten.nbytes

    def __len__(self) -> int:
        return len(self._arrays)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._arrays.clear()
            self.held_bytes = 0


Array = NDArray[np.float32]
Combine = Literal["mean", "median", "geometric-mean", "minimum"]
AS_ONE = "all"
"""Name of what stands for all levels."""


@dataclass(frozen=True)
class Member:
    """A map (S, H, W) of one noise level and seed, or of ``AS_ONE``: a reconstruction, or the residual that it leaves."""

    level: str
    weight: float
    values: Array


def levels_of(scoring: ScoringConfig, reconstructed: Sequence[int]) -> tuple[int, ...]:
    """Noise levels that are combined, ascending: those chosen (all, if none are), without those of weight 0."""
    if scoring.level_weights is None or scoring.noise_levels is None:
        return tuple(sorted(set(scoring.noise_levels or reconstructed)))
    pairs = zip(scoring.noise_levels, scoring.level_weights, strict=True)
    return tuple(sorted({level for level, weight in pairs if weight}))


def weights_of(scoring: ScoringConfig, levels: Sequence[int]) -> tuple[float, ...]:
    """Weight of each of ``levels``, their sum 1."""
    if scoring.level_weights is None or scoring.noise_levels is None:
        return (1 / len(levels),) * len(levels)
    given = dict(zip(scoring.noise_levels, scoring.level_weights, strict=True))
    total = sum(given[level] for level in levels)
    return tuple(given[level] / total for level in levels)


def compares_mean(scoring: ScoringConfig) -> bool:
    """Whether the mean reconstruction is all that is compared with the image."""
    return scoring.combine == "reconstructions" and scoring.residual != "mahalanobis"


def upstream(scoring: ScoringConfig, levels: Sequence[int]) -> tuple[Any, ...]:
    """The settings on which the residual depends, as a key."""
    window = scoring.ssim_window if scoring.residual == "ssim" else None
    kind = (scoring.residual, window, scoring.combine, scoring.normalise, scoring.match_histogram)
    return (tuple(levels), weights_of(scoring, levels), scoring.guidance_scale, *kind)


def residuals(
    image: NDArray[np.floating[Any]],
    brain: NDArray[np.bool_],
    reconstructions: Sequence[Member],
    scoring: ScoringConfig,
) -> list[Member]:
    """What each reconstruction leaves of the image, or what all leave as one; arrays (S, H, W), in float32.

    Structural similarities see 0 outside of the brain mask. Raises ``ConfigError`` if ``mahalanobis`` has less than two
    reconstructions, ``ValueError`` for an unknown residual.
    """
    if scoring.match_histogram:
        reconstructions = [Member(m.level, m.weight, matched(m.values, image, brain)) for m in reconstructions]
    if scoring.residual == "mahalanobis":
        return [Member(AS_ONE, 1.0, _distance(image, brain, reconstructions))]
    unlike = _comparison(image, brain, scoring)
    return [Member(m.level, m.weight, unlike(m.values)) for m in reconstructions]


def _distance(image: NDArray[np.floating[Any]], brain: NDArray[np.bool_], members: Sequence[Member]) -> Array:
    if len(members) < 2:
        raise ConfigError(
            "scoring.residual: 'mahalanobis' needs two reconstructions or more, and one noise level with one noise seed is "
            "chosen; name more in scoring.noise_levels, or add to reconstruction.noise_levels or reconstruction.noise_seeds"
        )
    return mahalanobis_map(image, [m.values for m in members], brain)


def _comparison(
    image: NDArray[np.floating[Any]], brain: NDArray[np.bool_], scoring: ScoringConfig
) -> Callable[[Array], Array]:
    kind = scoring.residual
    if kind == "l1" or kind == "l2" or kind == "positive" or kind == "negative":
        return lambda x0: difference(image, x0, kind)
    windows = ENSEMBLE_WINDOWS if kind == "ssim-ensemble" else (scoring.ssim_window,)
    if kind in ("ssim", "ssim-ensemble"):
        inside = brain.astype(np.float32)
        return lambda x0: dissimilarity(image * inside, x0 * inside, windows)
    raise ValueError(f"residual: {kind!r} does not compare a single reconstruction")


def joined(
    members: Sequence[Member],
    image: NDArray[np.floating[Any]],
    scoring: ScoringConfig,
    statistics: Statistics | None = None,
) -> NDArray[np.float16]:
    """The residuals of ``residuals`` as one, standardised if there are ``statistics``: (S, H, W), >= 0, float16.

    Negative z-scores count as 0 in the result (and before a geometric mean).
    """
    maps = [m.values if statistics is None else standardised(m.values, image, statistics[m.level]) for m in members]
    if len(maps) == 1 or scoring.combine == "reconstructions":
        return anomaly_scores(maps[0])
    if scoring.combine == "geometric-mean":
        maps = [np.maximum(z, 0) for z in maps]
    weights = None if scoring.level_weights is None else [m.weight for m in members]
    return anomaly_scores(combined(maps, scoring.combine, weights))


class Ensemble:
    """Reads reconstructions as a scoring asks for them, and keeps means in a memo."""

    def __init__(self, cache: Reconstructions, memo: ArrayMemo) -> None:
        self.cache, self._memo = cache, memo

    def levels(self, scoring: ScoringConfig) -> tuple[int, ...]:
        """Noise levels that are combined."""
        return levels_of(scoring, self.cache.levels)

    def passes(self, scoring: ScoringConfig) -> int:
        """Forward passes per volume that a prediction with these settings needs."""
        return len(self.levels(scoring)) * len(self.cache.seeds) * (1 if scoring.guidance_scale == 1 else 2)

    def members(self, case: Case, scoring: ScoringConfig) -> list[Member]:
        """The reconstructions that are compared with the image, inside the box of ``case``."""
        if compares_mean(scoring):
            return [Member(AS_ONE, 1.0, self.mean(case, scoring))]
        levels, scale = self.levels(scoring), scoring.guidance_scale
        return [
            Member(str(level), weight, self._one(case, level, seed, scale))
            for level, weight in zip(levels, weights_of(scoring, levels), strict=True)
            for seed in self.cache.seeds
        ]

    def mean(self, case: Case, scoring: ScoringConfig) -> Array:
        """Mean over levels and seeds inside the box: guidance is affine, so the means of c and d are kept, for any s."""
        levels = self.levels(scoring)
        weights = weights_of(scoring, levels)

        def kept(branch: Literal["c", "d"]) -> Array:
            return self._memo.get(
                (case.index, branch, levels, weights), lambda: self._mean(case, branch, levels, weights)
            )

        return _guided(kept, scoring.guidance_scale)

    def fresh_mean(self, case: Case, scoring: ScoringConfig) -> Array:
        """As ``mean``, read anew: for a case with another box."""
        levels = self.levels(scoring)
        weights = weights_of(scoring, levels)
        return _guided(lambda branch: self._mean(case, branch, levels, weights), scoring.guidance_scale)

    def _one(self, case: Case, level: int, seed: int, scale: float) -> Array:
        def read(branch: Literal["c", "d"]) -> Array:
            return self._read(branch)(case.id, level, seed)[case.box].astype(np.float32)

        return _guided(read, scale)

    def _read(self, branch: Literal["c", "d"]) -> Callable[[str, int, int], NDArray[np.floating[Any]]]:
        return self.cache.c if branch == "c" else self.cache.d

    def _mean(
        self, case: Case, branch: Literal["c", "d"], levels: tuple[int, ...], weights: tuple[float, ...]
    ) -> Array:
        read, seeds = self._read(branch), self.cache.seeds
        groups = [[read(case.id, level, seed)[case.box] for seed in seeds] for level in levels]
        return _average(groups, weights)


def _guided(branch: Callable[[Literal["c", "d"]], Array], scale: float) -> Array:
    """x0(s) = c + (s - 1) d; d is not asked for where it has no say."""
    if scale == 1.0:
        return branch("c")
    return branch("c") + np.float32(scale - 1.0) * branch("d")


def _average(groups: Sequence[Sequence[NDArray[np.floating[Any]]]], weights: tuple[float, ...]) -> Array:
    """Weighted mean over groups (noise levels) of the mean over their maps (seeds); the same weights add up exactly."""
    same = len(set(weights)) == 1
    total: Array = np.zeros(groups[0][0].shape, np.float32)
    for weight, group in zip(weights, groups, strict=True):
        for array in group:
            if array.dtype == np.float16:
                half.add(total, array, 1.0 if same else weight)
            else:
                total += array if same else np.float32(weight) * array.astype(np.float32)
    total /= sum(map(len, groups)) if same else len(groups[0])
    return total


def combined(residuals: Sequence[Array], how: Combine, weights: Sequence[float] | None = None) -> Array:
    """One map of K maps of one shape, voxel by voxel, in float32.

    ``mean`` sum w_k r_k, ``geometric-mean`` exp(sum w_k ln r_k), 0 where a map is 0 (maps must be >= 0); the ``weights``
    (> 0; none: all the same) are divided by their sum. ``median`` and ``minimum`` take no weights; the median of an even number
    is the mean of the middle two. Raises ``ValueError`` for another way, weights where there are none, or no map.
    """
    if not residuals or (weights is not None and how in ("median", "minimum")):
        raise ValueError(f"{len(residuals)} residuals combined by {how!r} with weights {weights}")
    shares = np.full(len(residuals), 1.0) if weights is None else np.asarray(weights, np.float64)
    shares = shares / shares.sum()
    if len(residuals) == 1:
        return residuals[0]
    if how == "mean":
        return _weighted_sum(residuals, shares)
    if how == "geometric-mean":
        with np.errstate(divide="ignore"):  # ln 0 = -inf, and exp(-inf) = 0
            return np.exp(_weighted_sum([np.log(r) for r in residuals], shares))
    if how == "minimum":
        return np.minimum.reduce(list(residuals))
    if how == "median":
        return _median(residuals)
    raise ValueError(f"combine: {how!r}; allowed are 'mean', 'median', 'geometric-mean' and 'minimum'")


def _weighted_sum(arrays: Sequence[Array], shares: NDArray[np.float64]) -> Array:
    total = np.float32(shares[0]) * arrays[0]
    for share, array in zip(shares[1:], arrays[1:], strict=True):
        total += np.float32(share) * array
    return total


def _median(arrays: Sequence[Array]) -> Array:
    """Sorted by compare-exchanges of whole maps: for the few maps there are, ten times faster than a sort per voxel."""
    wires = [array.copy() for array in arrays]
    for step in range(len(wires)):
        for i in range(step % 2, len(wires) - 1, 2):
            low = np.minimum(wires[i], wires[i + 1])
            np.maximum(wires[i], wires[i + 1], out=wires[i + 1])
            wires[i] = low
    middle = len(wires) // 2
    return wires[middle] if len(wires) % 2 else (wires[middle - 1] + wires[middle]) / np.float32(2)
