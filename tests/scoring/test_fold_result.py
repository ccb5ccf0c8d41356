"""A fold's result is refused by name where it cannot be right."""

import math

import pytest

from cddpm.scoring.fold_result import FoldResult


def test_values_are_the_defined_ones_under_the_subject_of_their_volume() -> None:
    rows = [{"volume": "a1", "subject": "a", "dice": 0.0}, {"volume": "b", "dice": 1}, {"volume": "c", "dice": None}]
    assert FoldResult("m", "d", 0, rows, {}).values("dice") == [("a", "a1", 0.0), ("b", "b", 1.0)]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_none_are_refused_in_rows_and_measures(value: float) -> None:
    with pytest.raises(ValueError, match=r"DDPM on MSLUB, fold 1, volume 'p1': dice is"):
        FoldResult("DDPM", "MSLUB", 1, [{"volume": "p1", "dice": value}], {})
    with pytest.raises(ValueError, match="measures: dice is"):
        FoldResult("DDPM", "MSLUB", 1, [], {"dice": value})


def test_a_row_needs_a_volume_and_a_fold_is_not_negative() -> None:
    with pytest.raises(ValueError, match="a row without 'volume'; it has dice"):
        FoldResult("m", "d", 0, [{"dice": 0.5}], {})
    with pytest.raises(ValueError, match="fold -1"):
        FoldResult("m", "d", -1, [], {})
