"""Rungs and brackets by hand."""

from collections import Counter

import pytest

from cddpm.config import AshaConfig, SearchConfig
from cddpm.search import halving

ASHA = AshaConfig(grace_images=100, reduction_factor=3, brackets=3)


@pytest.mark.parametrize(
    ("bracket", "images", "expected"),
    [(0, 1000, [100, 300, 900]), (1, 1000, [300, 900]), (2, 901, [900]), (2, 900, []), (0, 100, [])],
)
def test_rungs_lie_inside_the_budget(bracket: int, images: int, expected: list[int]) -> None:
    assert halving.rungs(ASHA, bracket, images) == expected


@pytest.mark.slow
def test_stricter_brackets_get_more_trials() -> None:
    """Hyperband with eta 3 and three brackets: 9/3, 3/2 and 1 parts."""
    drawn = Counter(halving.bracket_of(0, number, ASHA, 3) for number in range(4000))
    for bracket, share in enumerate((3 / 5.5, 1.5 / 5.5, 1 / 5.5)):
        assert drawn[bracket] / 4000 == pytest.approx(share, abs=0.03)


def test_a_bracket_follows_from_seed_and_number() -> None:
    first = [halving.bracket_of(1, number, ASHA, 3) for number in range(30)]
    assert first == [halving.bracket_of(1, number, ASHA, 3) for number in range(30)]
    assert first != [halving.bracket_of(2, number, ASHA, 3) for number in range(30)]
    assert {halving.bracket_of(1, number, ASHA, 1) for number in range(30)} == {0}


def test_how_many_brackets_a_scheduler_has() -> None:
    kinds = ("none", "asha", "hyperband")
    assert [halving.brackets(SearchConfig(scheduler=kind, asha=ASHA)) for kind in kinds] == [0, 1, 3]
