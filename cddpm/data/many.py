"""The same work on many scans: in threads of this process, or wherever a caller spreads it (``cluster.parallel_map``)."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

ParallelMap = Callable[[Callable[[Any], Any], list[Any]], Iterable[Any]]
"""Results in the order of the items."""


def in_threads(count: int | None = None) -> ParallelMap:
    """So many at a time, or as many as there are CPUs.

    Threads, not processes: decompression, digests and numpy release the lock, and start-up costs nothing.
    """

    def parallel_map(function: Callable[[Any], Any], items: list[Any]) -> list[Any]:
        with ThreadPoolExecutor(max_workers=count or max(2, os.cpu_count() or 2)) as pool:
            return list(pool.map(function, items))

    return parallel_map
