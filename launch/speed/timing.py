"""Seconds of work, measured so that two ways can be compared on a machine that does other things too."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Pair:
    """Two ways of the same work: median seconds of each, and the median of their ratios, measurement by measurement."""

    ours_seconds: float
    theirs_seconds: float
    ratio: float
    """theirs / ours: how many times faster ours is."""


def seconds(work: Callable[[], Any]) -> float:
    """Wall-clock of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int) -> Pair:
    """Call both by turns, ``repeats`` times after a first time that does not count (compilation, files not yet read)."""
    ours(), theirs()
    times = [(seconds(ours), seconds(theirs)) for _ in range(repeats)]
    return Pair(median(a for a, _ in times), median(b for _, b in times), median(b / a for a, b in times))


def spread_of(times: Sequence[float]) -> tuple[float, float]:
    """Median, and half of the distance between the least and the greatest over it."""
    middle = median(times)
    return middle, (max(times) - min(times)) / 2 / middle
