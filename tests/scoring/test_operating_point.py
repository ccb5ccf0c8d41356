"""Exact curves and thresholds against slow, plain versions."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from cddpm.scoring.metrics import dice
from cddpm.scoring.operating_point import (
    area_under_roc,
    average_precision,
    best_dice,
    dice_curve,
    histogram,
    mean_dice_curve,
    pooled,
    quantile_threshold,
    threshold_bits,
    threshold_value,
    thresholds_by_dice,
)


def sample(seed: int, size: int = 400, values: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Scores with many ties, and lesion voxels that tend to score higher."""
    random = np.random.default_rng(seed)
    lesion = random.random(size) < 0.15
    scores = np.abs(random.integers(0, values, size) + 20 * lesion) / np.float64(128)
    return scores.astype(np.float16), lesion


def plain_best(groups: list[list[tuple[np.ndarray, np.ndarray]]]) -> tuple[float, float]:
    """Try every score as a threshold."""
    candidates = np.unique(np.concatenate([[0], *[scores for group in groups for scores, _ in group]]))
    means = [
        np.mean([np.mean([dice(scores > t, lesion) for scores, lesion in group]) for group in groups])
        for t in candidates
    ]
    return max(means), float(candidates[int(np.argmax(means))])


@pytest.mark.parametrize("seed", range(4))
def test_ranking_metrics_equal_scikit_learn(seed):
    scores, lesion = sample(seed)
    h = histogram(scores, lesion)
    assert average_precision(h) == pytest.approx(average_precision_score(lesion, scores.astype(float)), abs=1e-12)
    assert area_under_roc(h) == pytest.approx(roc_auc_score(lesion, scores.astype(float)), abs=1e-12)


def test_best_dice_over_all_thresholds_of_one_volume_a_data_set_and_several():
    volumes = [sample(seed) for seed in range(5)]
    counted = [histogram(*volume) for volume in volumes]
    for plan in ([[0]], [[0, 1, 2]], [[0, 1, 2], [3, 4]]):
        expected = plain_best([[volumes[i] for i in group] for group in plan])
        found = best_dice([[counted[i] for i in group] for group in plan])
        assert found.dice == pytest.approx(expected[0], abs=1e-12)
        assert found.threshold == expected[1]


def test_pooled_optimum_is_that_of_all_voxels_as_one_volume():
    volumes = [sample(seed) for seed in range(3)]
    as_one = tuple(np.concatenate(part) for part in zip(*volumes, strict=True))
    expected = plain_best([[as_one]])
    found = best_dice([[pooled([histogram(*volume) for volume in volumes])]])
    assert (found.dice, found.threshold) == (pytest.approx(expected[0]), expected[1])
    both, one = pooled([histogram(*volume) for volume in volumes]), histogram(*as_one)
    assert np.array_equal(both.lesion, one.lesion)
    assert np.array_equal(both.normal, one.normal)


def test_hand_worked_curve():
    scores = np.array([0.0, 0.5, 0.5, 1.0], np.float16)
    h = histogram(scores, np.array([False, True, False, True]))
    curve = dice_curve(h, h.lesion.size)
    assert curve[threshold_bits(0.0)] == pytest.approx(0.8)  # 3 predicted, 2 true, 2 lesion: 4 / 5
    assert curve[threshold_bits(0.5)] == pytest.approx(2 / 3)  # 1 predicted, 1 true, 2 lesion
    assert curve[threshold_bits(1.0)] == 0
    assert best_dice([[h]]).threshold == 0
    assert average_precision(h) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert area_under_roc(h) == pytest.approx((1 + 0.5 + 1 + 1) / 4)


def test_lesion_may_be_given_as_indices_and_scores_in_any_shape():
    scores, lesion = sample(0)
    flat, shaped = histogram(scores, np.flatnonzero(lesion)), histogram(scores.reshape(4, 10, 10), lesion)
    assert np.array_equal(flat.lesion, shaped.lesion)
    assert np.array_equal(flat.normal, shaped.normal)
    assert flat.lesion_voxels == lesion.sum()


def test_volumes_without_lesion_are_left_out_and_only_such_are_refused():
    with_lesion, without = histogram(*sample(0)), histogram(sample(1)[0], np.zeros(400, bool))
    length = max(with_lesion.lesion.size, without.lesion.size)
    assert np.array_equal(mean_dice_curve([with_lesion, without], length), mean_dice_curve([with_lesion], length))
    assert average_precision(without) is None
    assert area_under_roc(without) is None
    with pytest.raises(ValueError, match="no volume with lesion"):
        best_dice([[without]])
    with pytest.raises(ValueError, match="leave such volumes out"):
        dice_curve(without, length)


def test_thresholds_per_data_set_and_for_all():
    groups = {"A": [histogram(*sample(0)), histogram(*sample(1))], "B": [histogram(*sample(2, values=90))]}
    found = thresholds_by_dice(groups)
    assert found["A"] == best_dice([groups["A"]]).threshold
    assert found["B"] == best_dice([groups["B"]]).threshold
    assert found["all"] == best_dice(list(groups.values())).threshold


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.5, 0.999])
def test_quantile_threshold_is_the_lowest_that_keeps_the_rate(rate):
    scores = [sample(seed)[0] for seed in range(3)]
    everything = np.concatenate(scores)
    found = quantile_threshold([histogram(s, np.zeros(s.size, bool)) for s in scores], rate)
    assert np.mean(everything > found) <= rate
    below = threshold_value(int(threshold_bits(found)) - 1) if found else None
    assert below is None or np.mean(everything > below) > rate


@pytest.mark.parametrize("threshold", [0.0, 1e-9, 5.9e-8, 0.0696, 0.1, 0.33333, 1.0, 1.0004, 65504.0, 1e9])
def test_comparing_bits_is_comparing_numbers(threshold):
    every = np.arange(0x7C00, dtype=np.uint16)
    numbers = every.view(np.float16).astype(np.float64)
    assert np.array_equal(every > threshold_bits(threshold), numbers > threshold)


def test_impossible_scores_and_thresholds_are_refused():
    for bad in (-1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="finite and >= 0"):
            histogram(np.array([bad], np.float16), np.array([False]))
    for bad in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="a number >= 0 is needed"):
            threshold_bits(bad)


@pytest.mark.parity
def test_equals_the_published_code(published, rounding, near):
    scores, lesion = published["a_median5"].astype(np.float16), published["a_seg"] > 0
    h = histogram(scores, lesion)
    near("AUPRC", average_precision(h), published["a_auprc"], max(1e-9, rounding))
    near("AUROC", area_under_roc(h), published["a_auc"], max(1e-9, rounding))
    best = best_dice([[h]])
    assert best.dice >= float(published["a_best_dice_f32"]) - max(1e-9, rounding)  # ten halvings can only come near it
    assert dice(scores > np.float32(best.threshold), lesion) == best.dice
