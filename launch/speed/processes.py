"""Scoring points in plain processes of this machine: what the pool of actors does, without Ray."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context

from cddpm.search.point import Point, PointScorer, Proposal, ScorePoints

_FUNCTION: list[Callable[[Proposal], Point]] = []


def _open(factory: PointScorer) -> None:
    _FUNCTION[:] = [factory()]


def _apply(proposal: Proposal) -> Point:
    return _FUNCTION[0](proposal)


@contextmanager
def local_processes(factory: PointScorer, count: int) -> Iterator[ScorePoints]:
    """Scores proposals in ``count`` processes until the block ends."""
    with ProcessPoolExecutor(count, get_context("spawn"), initializer=_open, initargs=(factory,)) as pool:

        def score(proposals: Sequence[Proposal]) -> list[Point]:
            return list(pool.map(_apply, proposals))

        yield score
