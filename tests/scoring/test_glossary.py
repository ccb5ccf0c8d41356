"""Columns are found under their names, also those that settings make."""

import pytest

from cddpm.scoring.glossary import MEASURES, at_rate, describe
from cddpm.scoring.metrics import METRICS


@pytest.mark.parametrize(
    ("column", "name"),
    [
        ("dice", "dice"),
        ("dice_at_fpr_5pct", "dice_at_fpr_{rate}pct"),
        ("lesion_recall_pooled_at_fpr_0.1pct", "lesion_recall_pooled_at_fpr_{rate}pct"),
        ("false_positive_ml_at_fpr_1e-05pct", "false_positive_ml_at_fpr_{rate}pct"),
        ("lesion_recall_below_0.1ml", "lesion_recall_{size}"),
        ("lesion_recall_0.1_to_1ml", "lesion_recall_{size}"),
        ("lesions_found_from_10ml", "lesions_found_{size}"),
        ("lesions_found", "lesions_found"),
        ("lesion_recall", "lesion_recall"),
    ],
)
def test_settings_are_taken_out_of_names(column, name):
    assert describe(column) == MEASURES[name]


def test_spread_and_count_follow_the_measure():
    assert describe("hd95_std").unit == "mm"
    assert describe("hd95_std").better is None
    assert describe("dice_at_fpr_5pct_volumes").unit == "volumes"
    assert MEASURES["dice_at_fpr_{rate}pct"].meaning in describe("dice_at_fpr_5pct_std").meaning


@pytest.mark.parametrize("column", ["dices", "dice_at_fpr_5", "lesion_recall_small", "auroc_below_1ml", "_std"])
def test_unknown_columns_are_refused(column):
    with pytest.raises(KeyError):
        describe(column)


@pytest.mark.parametrize(
    ("rate", "column"), [(0.05, "dice_at_fpr_5pct"), (0.001, "dice_at_fpr_0.1pct"), (0.07, "dice_at_fpr_7pct")]
)
def test_rates_are_told_in_percent(rate, column):
    assert at_rate("dice", rate) == column


def test_the_metrics_of_the_search_are_explained():
    assert set(METRICS) <= MEASURES.keys()


def test_bounds_say_that_they_are_none():
    for name, measure in MEASURES.items():
        assert ("oracle" in name and measure.better is not None) == ("a bound" in measure.meaning), name
