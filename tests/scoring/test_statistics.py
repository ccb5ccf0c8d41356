"""Spread, intervals and tests against numbers counted by hand."""

import math
import warnings
from itertools import product

import numpy as np
import pytest
from fold_results import fold_result

from cddpm.scoring.statistics import (
    Comparison,
    FoldResult,
    Pairs,
    bootstrap_interval,
    compare,
    holm,
    over_folds,
    paired,
    subject_means,
)


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


def test_spread_over_folds_is_the_sample_standard_deviation() -> None:
    spread = over_folds([0.2, 0.4, None, 0.6])
    assert spread.mean == pytest.approx(0.4)
    assert spread.std == pytest.approx(0.2)  # sqrt((0.04 + 0 + 0.04) / 2)
    assert spread.folds == 3


def test_one_fold_has_no_spread_and_none_has_no_mean() -> None:
    assert (over_folds([0.5]).mean, over_folds([0.5]).std) == (0.5, None)
    assert (over_folds([None]).mean, over_folds([]).std, over_folds([None]).folds) == (None, None, 0)


def test_subjects_are_averaged_over_their_volumes_and_then_over_folds() -> None:
    first = FoldResult(
        "m",
        "d",
        0,
        [
            {"volume": "b1", "subject": "b", "dice": 0.0},
            {"volume": "b2", "subject": "b", "dice": 0.4},
            {"volume": "a", "dice": 0.6},
            {"volume": "c", "dice": None},
        ],
        {},
    )
    second = FoldResult("m", "d", 1, [{"volume": "b1", "subject": "b", "dice": 0.8}], {})
    assert subject_means([first, second], "dice") == pytest.approx({"a": 0.6, "b": 0.5})  # b: (0.2 + 0.8) / 2
    assert list(subject_means([first, second], "dice")) == ["a", "b"]


def test_pairs_are_taken_in_common_folds_only_and_the_others_are_named() -> None:
    one = [fold_result("m", 0, {"a": 0.5, "b": 0.7, "c": None}), fold_result("m", 1, {"a": 0.9, "b": 0.1})]
    other = [fold_result("n", 0, {"a": 0.4, "b": None, "c": 0.3}), fold_result("n", 2, {"a": 0.0})]
    pairs = paired(one, other, "dice")
    assert pairs.differences == pytest.approx({"a": 0.1})
    assert pairs.left_out == ("b", "c")


def test_the_order_of_volumes_changes_nothing() -> None:
    rng = np.random.default_rng(3)
    values = {f"s{i}": float(v) for i, v in enumerate(rng.random(20))}
    backwards = dict(reversed(values.items()))
    zero = fold_result("z", 0, dict.fromkeys(values, 0.5))
    forth, back = (fold_result("m", 0, v) for v in (values, backwards))
    assert paired([forth], [zero], "dice") == paired([back], [zero], "dice")
    assert compare(paired([forth], [zero], "dice"), 500) == compare(paired([back], [zero], "dice"), 500)
    assert bootstrap_interval(values.values(), 500, 0.95) == bootstrap_interval(backwards.values(), 500, 0.95)


def test_an_interval_of_equal_values_is_a_point_without_any_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        point = bootstrap_interval([0.1 + 0.2, 0.3, 0.3], 1000, 0.95)
        assert point.low == point.high == point.mean == pytest.approx(0.3)
        assert point.note == "all subjects have the same value"
        zeros = bootstrap_interval([0.0, 0.0], 1000, 0.95)
        assert (zeros.low, zeros.high, zeros.subjects) == (0.0, 0.0, 2)


def test_one_subject_or_none_gives_a_reason_and_no_interval() -> None:
    one, none = bootstrap_interval([0.4], 1000, 0.95), bootstrap_interval([], 1000, 0.95)
    assert (one.low, one.high, one.mean, one.note) == (None, None, 0.4, "one subject: an interval needs two")
    assert (none.low, none.mean, none.subjects, none.note) == (None, None, 0, "no subject has a value")


def test_an_interval_of_two_values_lies_between_them() -> None:
    """Resamples of (0, 1) have the mean 0, 1/2 or 1 with probabilities 1/4, 1/2, 1/4."""
    interval = bootstrap_interval([0.0, 1.0], 2000, 0.95)
    assert (interval.low, interval.high, interval.mean) == (0.0, 1.0, 0.5)
    assert bootstrap_interval([0.0, 1.0], 2000, 0.2).low == 0.5


def test_too_few_resamples_give_no_interval_but_a_reason() -> None:
    """95 % leave 2.5 % beyond each bound: one in 40 resamples."""
    sample = [0.0, 0.5, 1.0, 9.0]
    assert bootstrap_interval(sample, 39, 0.95).note == "39 resamples: an interval needs 40"
    assert bootstrap_interval(sample, 40, 0.95).low is not None


@pytest.mark.parametrize("size", [2, 3, 5])
def test_skewed_and_tiny_samples_warn_of_nothing(size: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(20):
            interval = bootstrap_interval([0.0] * (size - 1) + [1e-9], 40, 0.95, seed)
            assert interval.note or 0.0 <= (interval.low or 0.0) <= (interval.high or 0.0) <= 1e-9


def test_the_seed_decides_an_interval() -> None:
    values = np.random.default_rng(0).random(30)
    assert bootstrap_interval(values, 300, 0.95, 1) == bootstrap_interval(values, 300, 0.95, 1)
    assert bootstrap_interval(values, 300, 0.95, 1) != bootstrap_interval(values, 300, 0.95, 2)


def test_an_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    """120 samples of 25 normal values: 95 % is 114; three binomial standard deviations (2.4) and some undercoverage."""
    rng = np.random.default_rng(7)
    hits = 0
    for _ in range(120):
        interval = bootstrap_interval(rng.normal(2.0, 1.0, 25), 400, 0.95)
        assert interval.low is not None
        assert interval.high is not None
        hits += interval.low <= 2.0 <= interval.high
    assert 104 <= hits <= 119


def test_three_subjects_counted_by_hand() -> None:
    """Differences 1, 2, -1; the sums 4, 2, 2, 0, 0, -2, -2, -4 of the 8 sign patterns; three reach the observed 2."""
    comparison = compare(Pairs({"a": 1.0, "b": 2.0, "c": -1.0}, ()), 10_000)
    assert comparison.exact
    assert comparison.p == pytest.approx(2 * 3 / 8)
    assert comparison.difference == pytest.approx(2 / 3)


def test_three_subjects_that_all_agree_cannot_be_significant() -> None:
    comparison = compare(Pairs({"a": 0.1, "b": 0.2, "c": 0.3}, ()), 10_000)
    assert comparison.p == comparison.smallest == 0.25


def test_ties_are_counted_in_spite_of_rounding() -> None:
    """0.1 + 0.2 - 0.3 is not 0 in floating point, though it is as a sum of tenths."""
    values = [0.1, 0.2, -0.3, 0.3, -0.1, -0.2]
    found = compare(Pairs({str(i): v for i, v in enumerate(values)}, ()), 10_000)
    tenths = [1, 2, -3, 3, -1, -2]
    sums = [sum(s * t for s, t in zip(signs, tenths, strict=True)) for signs in product((1, -1), repeat=6)]
    above, below = (sum(s >= 0 for s in sums) / 64, sum(s <= 0 for s in sums) / 64)
    assert found.p == min(1.0, 2 * min(above, below)) == 1.0


def test_exact_p_equals_the_count_over_all_sign_patterns() -> None:
    tenths = [3, -1, 4, 1, -5, 9, 2, 6]
    found = compare(Pairs({str(i): t / 10 for i, t in enumerate(tenths)}, ()), 10_000)
    sums = [sum(s * t for s, t in zip(signs, tenths, strict=True)) for signs in product((1, -1), repeat=8)]
    assert found.p == pytest.approx(2 * sum(s >= sum(tenths) for s in sums) / 256)


def test_random_sign_patterns_come_near_the_exact_p_and_never_reach_zero() -> None:
    rng = np.random.default_rng(5)
    pairs = Pairs({str(i): float(d) for i, d in enumerate(rng.normal(0.4, 1.0, 12))}, ())
    exact, random = compare(pairs, 4096), compare(pairs, 4000, seed=1)
    assert (exact.exact, random.exact) == (True, False)
    assert exact.p is not None
    assert random.p == pytest.approx(exact.p, abs=6 * math.sqrt(exact.p / 4000))
    sure = compare(Pairs({str(i): 1.0 for i in range(40)}, ()), 99)
    assert sure.p == pytest.approx(2 / 100)  # (0 + 1) / (99 + 1), both tails


def test_swapping_the_methods_turns_the_difference_only() -> None:
    there = compare(Pairs({"a": 0.5, "b": 0.25, "c": 0.125, "d": -0.25}, ()), 10_000)
    back = compare(Pairs({"a": -0.5, "b": -0.25, "c": -0.125, "d": 0.25}, ()), 10_000)
    assert there.p == back.p
    assert there.difference == -(back.difference or 0.0)


def test_no_difference_or_no_pair_is_told() -> None:
    same = compare(Pairs({"a": 0.0, "b": 0.0}, ()), 100)
    assert (same.p, same.note) == (1.0, "all differences are zero")
    assert compare(Pairs({"a": 0.5}, ("b",)), 100) == Comparison(
        None, 0.5, 1, ("b",), note="one common subject: a test needs two"
    )
    assert compare(Pairs({}, ("a", "b")), 100).note == "no subject was measured by both methods"


def test_holm_by_hand() -> None:
    """Sorted 0.01, 0.02, 0.03, 0.9 times 4, 3, 2, 1: 0.04, 0.06, 0.06 (not less than before), 0.9."""
    adjusted = holm({"a": 0.03, "b": 0.01, "c": None, "d": 0.02, "e": 0.9})
    assert adjusted == pytest.approx({"b": 0.04, "d": 0.06, "a": 0.06, "e": 0.9})


def test_holm_of_one_is_itself_and_never_above_one() -> None:
    assert holm({"a": 0.2}) == {"a": 0.2}
    assert holm({"a": 0.8, "b": 0.7}) == {"a": 1.0, "b": 1.0}
