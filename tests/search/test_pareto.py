"""The front against its definition, written out."""

from itertools import product

import numpy as np
import pytest

from cddpm.search.pareto import front


def plain(values: np.ndarray, goals: list[str]) -> list[bool]:
    """Every point against every other."""
    signed = [[v if g == "maximize" else -v for v, g in zip(row, goals, strict=True)] for row in values.tolist()]
    return [
        not any(
            all(b >= a for a, b in zip(one, other, strict=True)) and any(b > a for a, b in zip(one, other, strict=True))
            for other in signed
        )
        for one in signed
    ]


@pytest.mark.parametrize("goals", list(product(["maximize", "minimize"], repeat=3)))
def test_as_defined(goals: tuple[str, ...]) -> None:
    values = np.random.default_rng(0).integers(0, 6, (60, 3)).astype(float)  # with ties and equal points
    assert front(values, goals).tolist() == plain(values, list(goals))


def test_by_hand() -> None:
    dice_and_false_positives = [[0.5, 3.0], [0.6, 4.0], [0.4, 3.0], [0.6, 4.0], [0.3, 1.0]]
    assert front(dice_and_false_positives, ["maximize", "minimize"]).tolist() == [True, True, False, True, True]


def test_of_one_objective_the_best_is_the_front() -> None:
    assert front([[1.0], [3.0], [2.0], [3.0]], ["maximize"]).tolist() == [False, True, False, True]


def test_goals_must_fit() -> None:
    with pytest.raises(ValueError, match="values of 2 objectives, goals of 1"):
        front([[1.0, 2.0]], ["maximize"])
