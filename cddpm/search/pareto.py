"""Trade-offs: which points no other point beats in everything."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Goal = Literal["maximize", "minimize"]


@dataclass(frozen=True)
class Aim:
    """One of several objectives."""

    metric: str
    goal: Goal


def front(values: ArrayLike, goals: Sequence[Goal]) -> NDArray[np.bool_]:
    """Which of N points with K values each, (N, K), are dominated by no other; (N,). Of equal points all stay.

    A point is dominated if another is at least as good in every value and better in one. Raises ``ValueError`` if there
    are not as many goals as values.
    """
    table = np.atleast_2d(np.asarray(values, float))
    if table.shape[1] != len(goals):
        raise ValueError(f"values of {table.shape[1]} objectives, goals of {len(goals)}")
    better = table * np.array([1.0 if goal == "maximize" else -1.0 for goal in goals])
    order = np.lexsort(-better.T[::-1])  # best first value first: only earlier points can dominate later ones
    keep = np.zeros(len(table), bool)
    found = np.empty((0, table.shape[1]))
    for index in order:
        point = better[index]
        if not np.any(np.all(found >= point, axis=1) & np.any(found > point, axis=1)):
            keep[index] = True
            found = np.vstack([found, point])
    return keep
