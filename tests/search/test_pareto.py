"""The front against its definition, written out."""

from itertools import product
from typing import Any

import numpy as np
import pytest

from cddpm.search.pareto import Aim, front


def plain(values: np.ndarray, goals: tuple[str, ...]) -> list[int]:
    """Every point against every other; of equal points the earliest."""
    signed = values * [1 if goal == "maximize" else -1 for goal in goals]
    return [
        i
        for i, one in enumerate(signed)
        if not any((o >= one).all() and ((o > one).any() or j < i) for j, o in enumerate(signed) if j != i)
    ]


@pytest.mark.parametrize("goals", list(product(["maximize", "minimize"], repeat=3)))
def test_as_defined(goals: tuple[Any, ...]) -> None:
    values = np.random.default_rng(0).integers(0, 6, (60, 3))  # with ties and equal points
    aims = [Aim(name, goal) for name, goal in zip("abc", goals, strict=True)]
    rows = [dict(zip("abc", map(float, row), strict=True)) for row in values]
    found = front(rows, aims)
    assert sorted(found) == plain(values, goals)
    best_first = [rows[i]["a"] if goals[0] == "maximize" else -rows[i]["a"] for i in found]
    assert best_first == sorted(best_first, reverse=True)
