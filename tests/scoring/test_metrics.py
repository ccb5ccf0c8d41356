"""Every number under its right name, and none that is not a number."""

import numpy as np
import pytest

from cddpm.scoring.metrics import Confusion, aggregate, confusion, dice, mean, standard_deviation


def test_hand_worked_counts():
    prediction = np.array([1, 1, 1, 0, 0, 0, 0, 0], bool)
    truth = np.array([1, 0, 0, 1, 1, 0, 0, 0], bool)
    counts = confusion(prediction, truth)
    assert counts == Confusion(true_positive=1, false_positive=2, false_negative=2, true_negative=3)
    assert counts.dice == pytest.approx(1 / 3)
    assert counts.precision == pytest.approx(1 / 3)
    assert counts.recall == pytest.approx(1 / 3)
    assert counts.specificity == pytest.approx(3 / 5)
    assert counts.false_positive_rate == pytest.approx(2 / 5)
    assert counts.false_discovery_rate == pytest.approx(2 / 3)


def test_laws_of_the_ratios():
    random = np.random.default_rng(0)
    counts = confusion(random.random(99) > 0.6, random.random(99) > 0.7)
    assert counts.specificity + counts.false_positive_rate == pytest.approx(1)
    assert counts.precision + counts.false_discovery_rate == pytest.approx(1)
    assert counts.dice == pytest.approx(2 / (1 / counts.precision + 1 / counts.recall))


def test_perfect_and_disjoint():
    truth = np.array([True, False, True])
    assert dice(truth, truth) == 1
    assert dice(truth, ~truth) == 0


def test_undefined_numbers_are_none():
    nothing, everything = np.zeros(3, bool), np.ones(3, bool)
    assert dice(nothing, nothing) is None
    assert confusion(nothing, everything).precision is None
    assert confusion(everything, nothing).recall is None
    assert confusion(nothing, everything).specificity is None


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"prediction \(3,\) and truth \(4,\)"):
        confusion(np.zeros(3, bool), np.zeros(4, bool))


def test_means_leave_out_what_is_undefined_and_say_so():
    table = [{"dice": 0.2, "auprc": None}, {"dice": 0.6, "auprc": None}, {"dice": None, "auprc": None}]
    result = aggregate(table)
    assert result == {"volumes": 3, "dice": pytest.approx(0.4), "dice_std": pytest.approx(0.2), "dice_volumes": 2}
    assert mean([None]) is None
    assert standard_deviation([]) is None


@pytest.mark.parity
def test_equals_the_published_code_under_the_right_names(published, near):
    counts = confusion(published["a_cc"] > 0, published["a_seg"] > 0)
    near("Dice", counts.dice, published["a_dice"], 1e-12)
    near("recall", counts.recall, published["a_tpr"], 1e-12)
    near("false discovery rate", counts.false_discovery_rate, published["a_fpr_as_coded"], 1e-12)
    stored = published["a_confusion_as_coded_TP_FP_TN_FN"].tolist()  # stored in another order than their names say
    assert stored == [counts.true_negative, counts.false_negative, counts.false_positive, counts.true_positive]
    near("Dice", dice(published["a_thresholded"] > 0, published["a_seg"] > 0), published["a_dice_noCC"], 1e-12)
