"""Rungs and brackets by hand."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cddpm.config import AshaConfig, SearchConfig
from cddpm.search import halving

ASHA = AshaConfig(grace_images=100, reduction_factor=3, brackets=3)


@pytest.mark.parametrize(
    ("bracket", "images", "expected"),
    [(0, 1000, [100, 300, 900]), (1, 1000, [300, 900]), (2, 901, [900]), (2, 900, []), (0, 100, [])],
)
def test_rungs_lie_inside_the_budget(bracket: int, images: int, expected: list[int]) -> None:
    assert halving.rungs(ASHA, bracket, images) == expected


@given(st.integers(1, 10**6), st.integers(2, 5), st.integers(1, 10**7), st.integers(1, 10**7))
def test_validations_of_any_batch_size_are_compared_at_rungs(grace: int, factor: int, one: int, other: int) -> None:
    asha = AshaConfig(grace_images=grace, reduction_factor=factor)
    search, none = (SearchConfig(scheduler=kind, asha=asha) for kind in ("asha", "none"))
    first, second = (halving.compared_at(search, images) for images in sorted((one, other)))
    assert first <= second
    for images, at in ((min(one, other), first), (max(one, other), second)):
        if images < grace:
            assert at == images
        else:
            assert at <= images < factor * at
            assert at in halving.rungs(asha, 0, images + 1)
        assert halving.compared_at(none, images) == images


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
